"""What GridLife's worlds become, chance left out: the dynamics as formulas, and one step of every action at once."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import ACTIONS, RESERVES, GridLifeParams, tables, weather
from persist_sb3.envs.worlds import EMPTY, FIRST_SLOT, HAZARD

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: A set of slots is kept in the bits of an integer.
MOST_SLOTS = 63


def energy_after(params: GridLifeParams, energy: Any, moved: Any, fed: Any, step: Any = 0) -> Floats:
    """
    :param params: the world's parameters
    :param energy: before the step, any shape
    :param moved: whether the step changes the agent's tile
    :param fed: whether it ends on food
    :param step: the number of the step in its episode, which matters where the decay drifts
    :return: energy after the step
    """
    decay = params.energy_decay + params.energy_drift * step
    left = energy - decay - params.move_cost * moved
    return np.clip(left + params.food_energy * fed, 0.0, 1.0)


def temp_after(params: GridLifeParams, temp: Any, heat: Any, energy: Any = RESERVES) -> Floats:
    """
    :param params: the world's parameters
    :param temp: temperature before the step, any shape
    :param heat: of the tile that the step ends on, that of the weather included
    :param energy: before the step, which matters where there is insulation
    :return: temperature after the step
    """
    felt = heat + params.insulation * (energy - RESERVES)
    return np.clip(temp + params.temp_rate * (felt - temp), 0.0, 1.0)


def integrity_after(params: GridLifeParams, integrity: Any, hazard: Any) -> Floats:
    """
    :param params: the world's parameters
    :param integrity: before the step, any shape
    :param hazard: whether the step ends on a hazard
    :return: integrity after the step
    """
    return np.clip(np.where(hazard, integrity - params.hazard_damage, integrity + params.repair), 0.0, 1.0)


class Futures(NamedTuple):
    """What ``k`` imagined states of each of ``n`` worlds become: ``5 k``, the actions of a state side by side."""

    cell: Ints  # (n, 5 k)
    internal: Floats  # (3, n, 5 k)
    gone: Ints  # (n, 5 k) bit s is set where the food or item of slot s is not there
    collected: Bools  # (n, 5 k) whether the step collected an item


class Foresight:
    """
    The mean dynamics: nobody slips, and what is eaten or collected does not come back.

    :param params: the worlds' parameters
    :param heat: of each tile, ``(n, A)``
    :param hazard: whether a tile is hazardous, ``(n, A)``
    :param places: tile of each food, then of each item, ``(n, food + items)``
    :param first_spell: number of the first spell of weather in the episode, ``(n,)``; needed where there are seasons
    :raises ValueError: if there are more slots than an integer has bits, or the season is needed and not given
    """

    def __init__(
        self,
        params: GridLifeParams,
        heat: NDArray[np.float32],
        hazard: Bools,
        places: Ints,
        first_spell: Ints | None = None,
    ) -> None:
        if params.climate and first_spell is None:
            raise ValueError(f"climate={params.climate}: what comes depends on the season, which is not told")
        self._first_spell = first_spell
        if params.slots > MOST_SLOTS:
            raise ValueError(f"the oracle foresees at most food + items = {MOST_SLOTS}, not {params.slots}")
        self._params = params
        self._targets = np.ascontiguousarray(tables(params).targets.T)
        self._first_tile = np.arange(len(heat))[:, None] * params.size**2
        tiles = np.where(hazard, HAZARD, EMPTY)
        np.put_along_axis(tiles, places, FIRST_SLOT + np.arange(params.slots), axis=1)
        self._tiles = tiles.ravel()
        self._heat = heat.astype(np.float64).ravel()

    def step(self, cell: Ints, internal: Floats, gone: Ints, number: Any = 0) -> Futures:
        """
        Take every action in every state.

        :param cell: the agent's tile, ``(n, k)``
        :param internal: internal variables, ``(3, n, k)``
        :param gone: slots whose food or item is not there, as bits, ``(n, k)``
        :param number: of the step in its episode, ``(n, 1)``, which matters where the decay drifts or there are seasons
        :return: the states after the step
        """
        params, n = self._params, len(cell)
        target = self._targets[cell].reshape(n, -1)
        before, gone = cell.repeat(len(ACTIONS), axis=1), gone.repeat(len(ACTIONS), axis=1)
        where = target + self._first_tile
        tile, heat = self._tiles.take(where), self._heat.take(where)
        slot = np.maximum(tile - FIRST_SLOT, 0)
        taken = (tile >= FIRST_SLOT) & (gone >> slot & 1 == 0)
        fed = taken & (slot < params.food)
        energy, temp, integrity = internal.repeat(len(ACTIONS), axis=2)
        after = np.empty((3, *target.shape))
        after[0] = energy_after(params, energy, target != before, fed, number)
        if self._first_spell is not None:
            heat = heat + weather(params, self._first_spell[:, None], number)
        after[1] = temp_after(params, temp, heat, energy)
        after[2] = integrity_after(params, integrity, tile == HAZARD)
        return Futures(target, after, gone | taken.astype(np.int64) << slot, taken & ~fed)
