"""From which states of a small GridLife world an agent can stay alive: computed, not learned."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persist_sb3.envs.batch import GridLifeCore
from persist_sb3.envs.dynamics import ACTIONS, CONSTRAINTS, INTERNAL_NAMES, SETPOINT, GridLifeParams, tables
from persist_sb3.envs.interface import make_viability
from persist_sb3.envs.layout import Layouts, generate
from persist_sb3.envs.oracle.lattice import Lattice, Step
from persist_sb3.envs.oracle.model import Bools, Floats, Ints
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.viability import ViabilitySet

#: The most states there may be; each takes up to 60 bytes.
MOST_STATES = 20_000_000

#: Truth values or probabilities of states, ``(A, 2 ** food, energy, temp, integrity)``. Bit ``s`` of the second index
#: says whether food ``s`` is there.
Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Bounds:
    """
    A function of the state that is known to lie between two others.

    :param lower: on the lattice, with what lies between its nodes rounded down
    :param upper: the same, rounded up
    :param world: whose states these are
    """

    lower: Values
    upper: Values
    world: "ExactViability"

    def at(self, cell: ArrayLike, x: ArrayLike, present: ArrayLike | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """
        :param cell: the agent's tile, numbered row by row, ``(n,)``
        :param x: internal variables, ``(n, 3)``
        :param present: which food is there, ``(n, food)``. Default: all
        :return: lower and upper bound, ``(n,)`` each; both are 0 outside the viability set
        :raises ValueError: if the shapes do not fit, or there is no such tile
        """
        tiles, internal, food = self.world.checked(cell, x, present)
        viable = self.world.viability.contains(internal)
        low, high = (self.world.lattice.index(internal, upper) for upper in (False, True))
        lower, upper = self.lower[(tiles, food, *low)].max(axis=0), self.upper[(tiles, food, *high)].min(axis=0)
        return lower * viable, upper * viable


class ExactViability:
    """
    The viability kernel of one layout: the states from which some way of acting keeps the internal variables within
    their limits for ever (Aubin, Viability Theory, 1991). It is the greatest set from whose every state some action
    leads back into it, and is found by taking states away until that holds (Saint-Pierre, Approximation of the
    viability kernel, 1994).

    Internal variables are real numbers and a computer's sets are finite, so :attr:`kernel` has two, on a
    :class:`~persist_sb3.envs.oracle.lattice.Lattice`: states in the lower one certainly are viable, states outside the
    upper one certainly are not, and about those in between this lattice cannot tell.

    Slips are an opponent here, and so is regrowth whose probability is neither 0 nor 1: in the kernel, chance *cannot*
    kill the agent. Where that asks too much, :meth:`survival` gives probabilities. Without food that is sure to regrow
    (``food_regrowth=1``) no agent that uses up energy lives for ever: give a horizon.

    :param params: the world's parameters; the number of states is ``size ** 2 * 2 ** food`` times that of the levels
    :param layout_seed: the layout
    :param levels: nodes of energy, boxes of temperature, nodes of integrity. Energy and integrity are exact if all that
        changes them is a multiple of ``(1 - lower limit) / (nodes - 1)``
    :param horizon: stay alive for that many steps. Default: for ever
    :param viability: the limits, on single variables. Default: those GridLife has by default
    :raises ValueError: if there are too many states, too few levels, no step in the horizon, or an upper limit on
        energy or integrity; or if the world drifts, has seasons, or has insulation
    """

    def __init__(
        self,
        params: GridLifeParams,
        layout_seed: int,
        *,
        levels: tuple[int, int, int] = (41, 40, 21),
        horizon: int | None = None,
        viability: ViabilitySet | None = None,
    ) -> None:
        if params.energy_drift:
            raise ValueError(f"energy_drift={params.energy_drift}: the kernel is of worlds that stay as they are")
        if params.climate:
            raise ValueError(f"climate={params.climate}: the kernel is of worlds without seasons")
        if params.insulation:
            raise ValueError(
                f"insulation={params.insulation}: the kernel is of worlds whose temperature does not depend on energy"
            )
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon={horizon} must be at least 1, or None for ever")
        self.params = params
        self.layout_seed = layout_seed
        self.viability = viability or make_viability(CONSTRAINTS, SETPOINT)
        self.lattice = Lattice(params, self.viability, levels)
        self.layout = Layouts(*(part[0] for part in generate(params, np.array([layout_seed], dtype=np.uint64))))
        self._shape = (params.size**2, 2**params.food, *levels)
        states = int(np.prod(self._shape, dtype=np.float64))
        if states > MOST_STATES:
            raise ValueError(
                f"size={params.size}, food={params.food} and levels={levels} make {states:,} states, more than "
                f"{MOST_STATES:,}: make the grid smaller, the food less, or the levels fewer"
            )
        lower, led_into = self._fixed_point(horizon, upper=False)
        upper, _ = self._fixed_point(horizon, upper=True)
        bits = (1 << np.arange(len(ACTIONS), dtype=np.uint8)).reshape(-1, *[1] * (len(self._shape) - 1))
        lead = _Backup(self, upper=False, opponent=True)(led_into)
        self._safe = np.stack([(actions * bits).sum(axis=0, dtype=np.uint8) for actions in lead])
        #: Whether states are in the kernel.
        self.kernel = Bounds(lower, upper, self)

    def contains(self, cell: ArrayLike, x: ArrayLike, present: ArrayLike | None = None) -> Bools:
        """
        :param cell: the agent's tile, ``(n,)``
        :param x: internal variables, ``(n, 3)``
        :param present: which food is there, ``(n, food)``. Default: all
        :return: whether the state certainly is in the kernel, ``(n,)``
        """
        return self.kernel.at(cell, x, present)[0]

    def safe_actions(self, cell: ArrayLike, x: ArrayLike, present: ArrayLike | None = None) -> Bools:
        """
        :param cell: the agent's tile, ``(n,)``
        :param x: internal variables, ``(n, 3)``
        :param present: which food is there, ``(n, food)``. Default: all
        :return: which actions certainly lead back into the kernel, ``(n, 5)``; with a horizon, into that of one step
            less. There is one wherever the state certainly is in the kernel, and none elsewhere
        """
        tiles, internal, food = self.checked(cell, x, present)
        below, above = self._safe[(tiles, food, *self.lattice.index(internal, upper=False))]
        packed = (below | above) * self.viability.contains(internal)
        safe: Bools = packed[:, None] >> np.arange(len(ACTIONS)) & 1 == 1
        return safe

    def survival(self, steps: int) -> Bounds:
        """
        The greatest probability of staying alive, over all ways of acting on the state, by value iteration.

        :param steps: how long
        :return: bounds on it; the lower one is what the best policy on the lattice achieves
        """
        lower, upper = np.ones(self._shape), np.ones(self._shape)
        below, above = _Backup(self, upper=False, opponent=False), _Backup(self, upper=True, opponent=False)
        for _ in range(steps):
            lower = np.stack([actions.max(axis=0) for actions in below(lower)])
            upper = np.stack([actions.max(axis=0) for actions in above(upper)])
        return Bounds(lower, upper, self)

    def worlds(self, cell: ArrayLike, x: ArrayLike, present: ArrayLike | None = None, seed: int = 0) -> Snapshot:
        """
        :param cell: the agent's tile, ``(n,)``
        :param x: internal variables, ``(n, 3)``
        :param present: which food is there, ``(n, food)``. Default: all
        :param seed: of chance
        :return: worlds that are in these states, at the beginning of an episode, to be restored in an environment
        """
        tiles, internal, food = self.checked(cell, x, present)
        n, slots = len(tiles), np.arange(self.params.food)
        core = GridLifeCore(n, self.params)
        core.begin(layout_seeds=np.full(n, self.layout_seed))
        begun = core.snapshot()
        begun.due[:, slots] = food[:, None] >> slots & 1 == 0
        core.restore(replace(begun, cell=tiles, internal=internal))
        core.redraw_chance(np.random.SeedSequence(seed).generate_state(n, np.uint64))
        return core.snapshot()

    def checked(self, cell: ArrayLike, x: ArrayLike, present: ArrayLike | None) -> tuple[Ints, Floats, Ints]:
        """
        :param cell: the agent's tile, ``(n,)``
        :param x: internal variables, ``(n, 3)``
        :param present: which food is there, ``(n, food)``, or None for all
        :return: the same as arrays, the food as bits, ``(n,)``
        :raises ValueError: if the shapes do not fit, or there is no such tile
        """
        tiles, internal, food = np.asarray(cell, dtype=np.int64), np.asarray(x, dtype=np.float64), self.params.food
        there = np.ones((len(tiles), food), bool) if present is None else np.asarray(present, dtype=bool)
        expected = (len(tiles),), (len(tiles), len(INTERNAL_NAMES)), (len(tiles), food)
        if (tiles.shape, internal.shape, there.shape) != expected:
            raise ValueError(
                f"cell, x and present must have the shapes (n,), (n, {len(INTERNAL_NAMES)}) and (n, {food}), not "
                f"{tiles.shape}, {internal.shape} and {there.shape}"
            )
        if ((tiles < 0) | (tiles >= self.params.size**2)).any():
            raise ValueError(
                f"the tiles of a grid of size {self.params.size} are 0 ... {self.params.size**2 - 1}: {tiles}"
            )
        return tiles, internal, (there << np.arange(food)).sum(axis=1, dtype=np.int64)

    def _fixed_point(self, horizon: int | None, upper: bool) -> tuple[Values, Values]:
        """The kernel, and the one of one step less that its actions lead into; for ever, they are the same."""
        backup = _Backup(self, upper, opponent=True)
        kernel = np.ones(self._shape, dtype=bool)
        for step in count(1):
            larger, kernel = kernel, np.stack([actions.any(axis=0) for actions in backup(kernel)])
            if step == horizon or np.array_equal(larger, kernel):
                break
        return kernel, larger


class _Backup:
    """
    One step of dynamic programming, on one side of the truth.

    What a step does depends on the tile that it ends on, on whether that is another one, and on the food that is there;
    and it does it to each internal variable separately. So the values before a step are found once for each tile that
    it can end on, by taking the values there along one axis after the other.

    :param world: what is known about it
    :param upper: for an upper bound, not a lower one
    :param opponent: chance does its worst, instead of being averaged over
    """

    def __init__(self, world: ExactViability, upper: bool, opponent: bool) -> None:
        lattice, layout = world.lattice, world.layout
        self._params = world.params
        self._opponent = opponent
        # A box leads to one or two boxes, of which the worse or the better counts.
        self._either = np.maximum if upper else np.minimum
        self._energy = {(m, f): lattice.energy(m, f, upper) for m in (False, True) for f in (False, True)}
        self._temp = [lattice.temp(heat, upper) for heat in layout.heat.astype(np.float64)]
        self._integrity = [lattice.integrity(hazard, upper) for hazard in layout.hazard]
        self._food_at = {int(tile): slot for slot, tile in enumerate(layout.places[: world.params.food])}
        self._targets: list[list[int]] = tables(world.params).targets.T.tolist()

    def __call__(self, values: Values) -> Iterator[Values]:
        """
        :param values: of states after the step
        :return: for each tile the values of the actions before it, ``(5, 2 ** food, energy, temp, integrity)``
        """
        # Indexed by whether the step changed the tile.
        arrivals = [
            (self._arrive(values, tile, False), self._arrive(values, tile, True)) for tile in range(len(values))
        ]
        slip = self._params.slip
        for tile, targets in enumerate(self._targets):
            actions = np.stack([arrivals[target][target != tile] for target in targets])
            if slip and self._opponent:
                actions[:] = actions.min(axis=0)
            elif slip:
                actions = (1.0 - slip) * actions + slip * actions.mean(axis=0)
            yield actions

    def _arrive(self, values: Values, tile: int, moved: bool) -> Values:
        """The values of states before a step that ends on a tile, ``(2 ** food, energy, temp, integrity)``."""
        future = self._before(values[tile], 3, self._integrity[tile])
        future = self._before(future, 2, self._temp[tile])
        arrival = self._before(future, 1, self._energy[moved, False])
        if tile in self._food_at:
            fed = self._before(future, 1, self._energy[moved, True])
            slot = self._food_at[tile]
            _split(arrival, slot)[1][:] = _split(fed, slot)[0]
        for slot in range(self._params.food):
            self._regrow(arrival, slot)
        return arrival

    def _before(self, values: Values, axis: int, step: Step) -> Values:
        inside = step.inside.reshape(-1, *[1] * (values.ndim - 1 - axis))
        before: Values = values.take(step.first, axis)
        if step.last is not step.first:
            before = self._either(before, values.take(step.last, axis))
        before *= inside
        return before

    def _regrow(self, arrival: Values, slot: int) -> None:
        """Food comes back before the agent arrives. It does no harm, so an opponent delays it if it can."""
        absent, there = _split(arrival, slot)
        probability = self._params.food_regrowth
        if not self._opponent:
            absent[:] = probability * there + (1.0 - probability) * absent
        elif probability == 1.0:
            absent[:] = there


def _split(values: Values, slot: int) -> tuple[Values, Values]:
    """Views of the states in which the food of a slot is absent and is there, from ``(2 ** food, ...)``."""
    halves = values.reshape(-1, 2, 2**slot, *values.shape[1:])
    return halves[:, 0], halves[:, 1]
