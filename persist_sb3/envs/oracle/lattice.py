"""A lattice of internal states, and where one step of GridLife leads on it, rounded to either side of the truth."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import INTERNAL_NAMES, GridLifeParams
from persist_sb3.envs.interface import limits
from persist_sb3.envs.oracle.model import Bools, Floats, Ints, energy_after, integrity_after, temp_after
from persist_sb3.viability import ViabilitySet

#: A value this close to a node is at the node: more than floating point errs by.
SNAP = 1e-12
#: What is guaranteed keeps this far from the limits: more than ten thousand steps, each off by ``SNAP``, add up to.
GUARD = 1e-8

ENERGY, TEMP, INTEGRITY = range(len(INTERNAL_NAMES))


class Step(NamedTuple):
    """What one step makes of each of the ``L`` levels of one internal variable."""

    first: Ints  # (L,) the lowest level that it can lead to
    last: Ints  # (L,) the highest, at most the next; the same array for nodes, which lead to one
    inside: Bools  # (L,) whether it stays within the limits: surely (lower bound), or possibly (upper bound)


class Lattice:
    """
    Energy and integrity have *nodes*, from the lower limit up to 1. More of them is never worse, so what holds between
    two nodes is bounded from below by rounding down and from above by rounding up. Temperature can be too low and too
    high, so it has *boxes* between its limits: a lower bound has to hold wherever in its box the temperature is, an
    upper bound only somewhere. Where all changes of energy and integrity are multiples of the spacing, nodes lead to
    nodes, and only the first rounding is one.

    :param params: the world's parameters
    :param viability: limits of single variables
    :param levels: how many nodes of energy, boxes of temperature and nodes of integrity
    :raises ValueError: if there are too few levels, or an upper limit on energy or integrity
    """

    def __init__(self, params: GridLifeParams, viability: ViabilitySet, levels: tuple[int, int, int]) -> None:
        if min(levels) < 2:
            raise ValueError(f"levels={levels} must be at least 2 for each of {', '.join(INTERNAL_NAMES)}")
        low, high, _, _ = limits(viability, params)
        for j in (ENERGY, INTEGRITY):
            if high[j] < 1.0:
                raise ValueError(
                    f"{INTERNAL_NAMES[j]} has the upper limit {high[j]:g}, but these bounds hold only where more of "
                    "it is never worse: leave the upper limit out"
                )
        self.levels = levels
        self._params = params
        self._low = low
        nodes = (levels[ENERGY], levels[TEMP] + 1, levels[INTEGRITY])
        self._spacing = (high - low) / (np.array(nodes) - 1)
        self._nodes = [np.linspace(*ends) for ends in zip(low, high, nodes, strict=True)]
        # No variable can pass 0 or 1, so these are no limits.
        self._least = np.where(low > 0.0, low, -np.inf)
        self._greatest = np.where(high < 1.0, high, np.inf)

    def index(self, x: Floats, upper: bool) -> tuple[Ints, Ints, Ints]:
        """
        :param x: internal variables within the limits, ``(n, 3)``
        :param upper: round to the side of an upper bound, not a lower one
        :return: their levels: of energy ``(n,)``; of temperature ``(2, n)``, as between two boxes it is in both; of
            integrity ``(n,)``
        """
        energy, temp, integrity = x.T
        boxes = np.stack([self._round(TEMP, temp - 2.0 * SNAP, up=False), self._round(TEMP, temp, up=False)])
        return self._round(ENERGY, energy, upper), boxes, self._round(INTEGRITY, integrity, upper)

    def energy(self, moved: bool, fed: bool, upper: bool) -> Step:
        """
        :param moved: whether the step changes the agent's tile
        :param fed: whether it ends on food
        :param upper: for an upper bound, not a lower one
        :return: what becomes of energy
        """
        after = energy_after(self._params, self._nodes[ENERGY], moved, fed)
        return self._step(ENERGY, after, after, upper)

    def temp(self, heat: float, upper: bool) -> Step:
        """
        :param heat: of the tile that the step ends on
        :param upper: for an upper bound, not a lower one
        :return: what becomes of temperature
        """
        after = temp_after(self._params, self._nodes[TEMP], heat)
        return self._step(TEMP, after[:-1], after[1:], upper)

    def integrity(self, hazard: bool, upper: bool) -> Step:
        """
        :param hazard: whether the step ends on a hazard
        :param upper: for an upper bound, not a lower one
        :return: what becomes of integrity
        """
        after = integrity_after(self._params, self._nodes[INTEGRITY], hazard)
        return self._step(INTEGRITY, after, after, upper)

    def _step(self, j: int, low: Floats, high: Floats, upper: bool) -> Step:
        least, greatest = self._least[j], self._greatest[j]
        if upper:
            inside = (high >= least - GUARD) & (low <= greatest + GUARD)
        else:
            inside = (low >= least + GUARD) & (high <= greatest - GUARD)
        if j != TEMP:
            level = self._round(j, low, upper)
            return Step(level, level, inside)
        first = self._round(j, low, up=False)
        # The box below the node at or above the upper end.
        last = np.maximum(first, self._round(j, high, up=True, offset=-1))
        return Step(first, last, inside)

    def _round(self, j: int, values: Floats, up: bool, offset: int = 0) -> Ints:
        place, snap = (values - self._low[j]) / self._spacing[j], SNAP / self._spacing[j]
        rounded = np.ceil(place - snap) if up else np.floor(place + snap)
        level: NDArray[np.int64] = np.clip(rounded + offset, 0, self.levels[j] - 1).astype(np.int64)
        return level
