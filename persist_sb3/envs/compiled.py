"""GridLife's dynamics for many worlds at once, compiled by numba. Needs the extra ``numba``."""

from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import (
    ACTIONS,
    RESERVES,
    SEES_FOOD,
    SEES_HAZARD,
    SEES_HEAT,
    SEES_ITEM,
    GridLifeParams,
    tables,
)
from persist_sb3.envs.interface import Interface
from persist_sb3.envs.layout import AROUND, draws_per_layout
from persist_sb3.envs.worlds import (
    CELL,
    CHANCE,
    EMPTY,
    FINAL,
    FIRST_SLOT,
    FIXED_INTS,
    HAZARD,
    HIGH,
    INTERNAL,
    LAYOUT_SEED,
    LAYOUTS,
    LOW,
    NEXT_EVENT,
    NEXT_SLIP,
    REACHED,
    REWARD,
    SETPOINT,
    SHOWN,
    SPREAD,
    STEP,
    TERMINATED,
    TOTAL,
    TRUNCATED,
    Worlds,
)

P = ParamSpec("P")
R = TypeVar("R")
Ints = NDArray[np.int64]
Reals = NDArray[np.float64]
Floats = NDArray[np.float32]
Flags = NDArray[np.uint8]

# Where the integer constants are; after them tables.targets, around, seen, far, and window of the first tile.
SIZE: Final = 0
RADIUS: Final = 1
HORIZON: Final = 2
FOOD: Final = 3
ITEMS: Final = 4
RINGED: Final = 5
RING_HAZARDS: Final = 6
HAZARDS: Final = 7
HOT: Final = 8
COLD: Final = 9
EXPLORE: Final = 10
SCENT: Final = 11
SAME_STEP: Final = 12
FIRST_LAYOUT: Final = 13
MANY_LAYOUTS: Final = 14
DRAWS: Final = 15
WINDOW: Final = 16
YEAR: Final = 17
SPELL_EVERY: Final = 18
SPELL_LENGTH: Final = 19
SEASON: Final = 20
INT_TABLES: Final = 21

# Where the real constants are; after them tables.food_wait, item_wait, slip_wait, spot, scent and spells.
ENERGY_DECAY: Final = 0
MOVE_COST: Final = 1
FOOD_ENERGY: Final = 2
TEMP_RATE: Final = 3
HAZARD_DAMAGE: Final = 4
REPAIR: Final = 5
COMFORT: Final = 6
HARSH: Final = 7
ENERGY_DRIFT: Final = 8
CLIMATE: Final = 9
INSULATION: Final = 10
FLOAT_TABLES: Final = 11

# What a tile is good for while a layout is made.
NOTHING, FREE, COMFORTABLE, HARSH_TILE, REWARDING, TILE = (np.uint8(flag) for flag in (0, 1, 2, 4, 8, 16))

N_ACTIONS: Final = len(ACTIONS)
DRAWN: Final = -1
#: In the place of a season: that of the layout.
OF_LAYOUT: Final = -1

#: The imported constants, which are compiled in. Compiled code is kept on the disk until this file changes, so a
#: change of theirs has to show here.
COMPILED_IN = (5, 8, 0.7, 0, 1, 2, 3, 10, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 0, 3, 4, 5, 8, 11, 14, 17, 20)

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S7, S11, S27, S30, S31, S56 = (np.uint64(shift) for shift in (7, 11, 27, 30, 31, 56))
ONES = np.uint64(0x0101010101010101)
LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
HIGH_BITS = np.uint64(0x8080808080808080)


class NumbaEngine:
    """
    The same as :class:`~persist_sb3.envs.vectorised.NumpyEngine`, to the last bit, but faster.

    :param worlds: changed in place
    :param params: the worlds' parameters
    :param interface: what is observed
    :param layouts: first and last-plus-one layout seed
    :param same_step: whether an episode that ends is followed by the next within the step, or by the next step
    """

    def __init__(
        self, worlds: Worlds, params: GridLifeParams, interface: Interface, layouts: tuple[int, int], same_step: bool
    ) -> None:
        table = tables(params)
        whole = [
            params.size,
            params.radius,
            params.horizon,
            params.food,
            params.items,
            params.ringed_food,
            params.ring_hazards,
            params.hazards,
            params.hot_spots,
            params.cold_spots,
            params.task == "explore",
            interface.scent,
            same_step,
            layouts[0],
            layouts[1] - layouts[0],
            draws_per_layout(params),
            interface.window_size,
            params.year,
            params.spell_every,
            params.spell_length,
            OF_LAYOUT if params.season is None else params.season,
        ]
        real = [
            params.energy_decay,
            params.move_cost,
            params.food_energy,
            params.temp_rate,
            params.hazard_damage,
            params.repair,
            params.comfort,
            params.harsh,
            params.energy_drift,
            params.climate,
            params.insulation,
        ]
        int_tables = [table.targets, table.around, table.seen, table.far, table.window[0]]
        float_tables = [table.food_wait, table.item_wait, table.slip_wait, table.spot, table.scent, table.spells]
        ints = np.concatenate([np.array(whole, dtype=np.int64), *(array.ravel() for array in int_tables)])
        floats = np.concatenate([np.array(real), *(array.ravel() for array in float_tables)])
        self._state = worlds.ints, worlds.floats, worlds.seen, worlds.observations
        self._constants = ints, floats

    def begin(self, rows: NDArray[np.intp], layout_seeds: NDArray[np.int64] | None = None) -> None:
        """
        :param rows: worlds whose next episode begins, ``(k,)``
        :param layout_seeds: their layouts, ``(k,)``; by default drawn
        """
        if layout_seeds is None:
            layout_seeds = np.full(len(rows), DRAWN)
        _begin_all(*self._state, rows, layout_seeds, *self._constants)

    def step(self, actions: NDArray[np.int64]) -> int:
        """
        :param actions: ``(n,)``
        :return: the first world whose action is not an index into ``ACTIONS``, in which case nothing is done, or -1
        """
        return _step_all(*self._state, actions, *self._constants)

    def observe(self, rows: NDArray[np.intp]) -> None:
        """
        :param rows: worlds whose observations are made anew, ``(k,)``
        """
        _observe_all(*self._state, rows, *self._constants)


def _compile(function: Callable[P, R]) -> Callable[P, R]:
    try:
        return njit(cache=True)(function)
    except RuntimeError:
        # Nothing nearby can be written to: it is compiled anew in each process.
        return njit(function)


@_compile
def _mixed(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> S30)) * MIX_1
    z = (z ^ (z >> S27)) * MIX_2
    return z ^ (z >> S31)


@_compile
def _unit(bits: np.uint64) -> float:
    return np.float64(bits >> S11) * 2.0**-53


@_compile
def _uniform(ints: Ints, i: int, stream: int) -> float:
    state = np.uint64(ints[i, stream]) + GOLDEN
    ints[i, stream] = np.int64(state)
    return _unit(_mixed(state))


@_compile
def _wait(laws: Reals, first: int, horizon: int, u: float) -> int:
    low, high = 0, horizon
    while low < high:
        middle = (low + high) // 2
        if u < laws[first + middle]:
            high = middle
        else:
            low = middle + 1
    return 1 + low


@_compile
def _matching(word: np.uint64, wanted: np.uint64) -> np.uint64:
    """Of eight tiles' flags in one word: 1 in the byte of each that has all the wanted ones."""
    missing = (word & wanted) ^ wanted
    return (((missing + LOW_BITS) & HIGH_BITS) ^ HIGH_BITS) >> S7


@_compile
def _count(words: NDArray[np.uint64], wanted: np.uint64) -> np.uint64:
    count = np.uint64(0)
    for word in words:
        count += (_matching(word, wanted) * ONES) >> S56
    return count


@_compile
def _pick(flags: Flags, wanted: np.uint8, otherwise: np.uint8, u: float) -> int:
    words = flags.view(np.uint64)
    all_wanted = np.uint64(wanted) * ONES
    count = _count(words, all_wanted)
    if count == 0:
        all_wanted = np.uint64(otherwise) * ONES
        count = _count(words, all_wanted)
    # Without branches, which would be mispredicted: the word that the tile is in, then its byte there.
    rank, past, before, k = np.uint64(u * count), np.uint64(0), np.uint64(0), np.uint64(0)
    for word in words:
        past += (_matching(word, all_wanted) * ONES) >> S56
        if past <= rank:
            before = past
            k += np.uint64(1)
    upto = _matching(words[k], all_wanted) * ONES
    not_past = (((rank - before) * ONES) | HIGH_BITS) - upto
    return int(np.uint64(8) * k + ((((not_past & HIGH_BITS) >> S7) * ONES) >> S56))


@_compile
def _lay_hazard(flags: Flags, tiles: Ints, shown: Floats, seen: Ints, cell: int, ci: Ints, around_at: int) -> None:
    flags[cell] &= ~FREE
    tiles[cell] = HAZARD
    shown[seen[cell] + SEES_HAZARD] = 1.0
    for k in range(around_at + cell * AROUND, around_at + (cell + 1) * AROUND):
        flags[ci[k]] |= REWARDING


@_compile
def _begin(
    ints: Ints, floats: Reals, maps: Floats, observations: Floats, i: int, layout_seed: int, ci: Ints, cf: Reals
) -> None:
    size, horizon = ci[SIZE], ci[HORIZON]
    food, ringed, hazards, hot = ci[FOOD], ci[RINGED], ci[HAZARDS], ci[HOT]
    slots, area = food + ci[ITEMS], size * size
    places = ints[i, FIXED_INTS : FIXED_INTS + slots]
    due = ints[i, FIXED_INTS + slots : FIXED_INTS + 2 * slots]
    tiles = ints[i, FIXED_INTS + 2 * slots : FIXED_INTS + 2 * slots + area]
    visited = ints[i, FIXED_INTS + 2 * slots + area : FIXED_INTS + 2 * slots + 2 * area]
    around_at = INT_TABLES + N_ACTIONS * area
    seen = ci[around_at + AROUND * area : around_at + AROUND * area + area]
    spot_at = FLOAT_TABLES + 3 * horizon
    far_at = around_at + (AROUND + 1) * area
    if layout_seed == DRAWN:
        layout_seed = ci[FIRST_LAYOUT] + int(_uniform(ints, i, LAYOUTS) * ci[MANY_LAYOUTS])
    ints[i, LAYOUT_SEED] = layout_seed

    counter = _mixed(np.uint64(layout_seed))
    shown = maps[i]
    u = np.empty(ci[DRAWS])
    for k in range(len(u)):
        u[k] = _unit(_mixed(counter + np.uint64(k + 1) * GOLDEN))
    drawn = 0

    heat = np.full(area, 0.5)
    # Bytes behind the last tile fill the last word; one of them is the neighbour of whatever has none.
    flags = np.zeros((area + 8) // 8 * 8, dtype=np.uint8)
    flags[:area] = TILE | FREE
    for spot in range(hot + ci[COLD]):
        centre = _pick(flags, FREE, TILE, u[drawn])
        drawn += 1
        sign = 1.0 if spot < hot else -1.0
        warmth = cf[spot_at + centre * area : spot_at + centre * area + area]
        far = ci[far_at + centre * area : far_at + centre * area + area]
        for cell in range(area):
            heat[cell] += sign * warmth[cell]
        for cell in range(area):
            flags[cell] &= TILE | np.uint8(far[cell])
    for cell in range(area):
        heat[cell] = np.float32(min(max(heat[cell], 0.0), 1.0))
    comfort, harsh = cf[COMFORT], cf[HARSH]
    for cell in range(area):
        off = abs(heat[cell] - 0.5)
        flags[cell] = (
            FREE | (np.uint8(off <= comfort) * COMFORTABLE) | (np.uint8(off > harsh) * (HARSH_TILE | REWARDING))
        )
    for cell in range(area):
        at = np.uint64(seen[cell])
        shown[at + np.uint64(SEES_FOOD)] = 0.0
        shown[at + np.uint64(SEES_ITEM)] = 0.0
        shown[at + np.uint64(SEES_HAZARD)] = 0.0
        shown[at + np.uint64(SEES_HEAT)] = np.float32(heat[cell])
    tiles[:] = EMPTY
    due[:] = 0

    for slot in range(food):
        cell = _pick(flags, FREE | (COMFORTABLE if slot < ringed else HARSH_TILE), FREE, u[drawn])
        drawn += 1
        flags[cell] &= ~FREE
        places[slot] = cell
    placed = 0
    for slot in range(ringed):
        around = ci[around_at + places[slot] * AROUND : around_at + places[slot] * AROUND + AROUND]
        for k in range(AROUND):
            rank = 0
            for other in range(AROUND):
                rank += u[drawn + k] > u[drawn + other]
            cell = around[k]
            if rank < ci[RING_HAZARDS] and placed < hazards and flags[cell] & FREE:
                _lay_hazard(flags, tiles, shown, seen, cell, ci, around_at)
                placed += 1
        drawn += AROUND
    for _ in range(hazards):
        if placed < hazards:
            _lay_hazard(flags, tiles, shown, seen, _pick(flags, FREE, FREE, u[drawn]), ci, around_at)
            placed += 1
        drawn += 1
    for slot in range(food, slots):
        cell = _pick(flags, FREE | REWARDING, FREE, u[drawn])
        drawn += 1
        flags[cell] &= ~FREE
        places[slot] = cell
    for slot in range(slots):
        cell = places[slot]
        tiles[cell] = FIRST_SLOT + slot
        shown[seen[cell] + (SEES_FOOD if slot < food else SEES_ITEM)] = 1.0
    start = _pick(flags, FREE | COMFORTABLE, FREE, u[drawn])

    ints[i, CELL] = start
    if ci[EXPLORE]:
        visited[:] = 0
        visited[start] = 1
    ints[i, STEP] = 0
    floats[i, TOTAL] = 0.0
    for j in range(3):
        x = floats[i, SETPOINT + j] + floats[i, SPREAD + j] * (2.0 * _uniform(ints, i, CHANCE) - 1.0)
        floats[i, INTERNAL + j] = min(max(x, 0.0), 1.0)
    first_slip = _wait(cf, FLOAT_TABLES + 2 * horizon, horizon, _uniform(ints, i, CHANCE))
    ints[i, NEXT_SLIP] = first_slip
    ints[i, NEXT_EVENT] = first_slip
    _observe(ints, floats, maps, observations, i, i + 1, ci, cf)


@_compile
def _observe(
    ints: Ints, floats: Reals, maps: Floats, observations: Floats, first: int, last: int, ci: Ints, cf: Reals
) -> None:
    size, width, food = ci[SIZE], ci[WINDOW], ci[FOOD]
    seen_at = INT_TABLES + (N_ACTIONS + AROUND) * size * size
    window_at = seen_at + (1 + size * size) * size * size
    scent_at = FLOAT_TABLES + 3 * ci[HORIZON] + size**4
    window = ci[window_at : window_at + width]
    for i in range(first, last):
        cell, observation = ints[i, CELL], observations[0, i]
        # The window of any tile is that of the first, shifted.
        shown = maps[i, ci[seen_at + cell] - ci[seen_at] :]
        for k in range(width):
            # Unsigned, an index needs no check for being negative.
            observation[k] = shown[np.uint64(window[k])]
        for j in range(3):
            observation[width + j] = np.float32(floats[i, INTERNAL + j] * floats[i, SHOWN + j])
        if ci[SCENT]:
            observation[width + 3] = 0.0
            observation[width + 4] = 0.0
            nearest = 2 * size
            for slot in range(food):
                if ints[i, FIXED_INTS + food + ci[ITEMS] + slot] == 0:
                    place = ints[i, FIXED_INTS + slot]
                    down, right = place // size - cell // size, place % size - cell % size
                    distance = abs(down) + abs(right)
                    if distance < nearest:
                        nearest = distance
                        at = scent_at + 2 * ((down + size - 1) * (2 * size - 1) + right + size - 1)
                        observation[width + 3] = np.float32(cf[at])
                        observation[width + 4] = np.float32(cf[at + 1])


@_compile
def _step_all(ints: Ints, floats: Reals, maps: Floats, observations: Floats, actions: Ints, ci: Ints, cf: Reals) -> int:
    for i in range(len(actions)):
        if not 0 <= actions[i] < N_ACTIONS:
            return i
    size, horizon, food = ci[SIZE], ci[HORIZON], ci[FOOD]
    slots, area = food + ci[ITEMS], size * size
    due_at = FIXED_INTS + slots
    tiles_at = due_at + slots
    visited_at = tiles_at + area
    seen_at = INT_TABLES + (N_ACTIONS + AROUND) * area
    spells_at = FLOAT_TABLES + 3 * horizon + size**4 + 2 * (2 * size - 1) ** 2
    for i in range(len(actions)):
        if ints[i, NEXT_EVENT] == 0:
            floats[i, REWARD] = 0.0
            ints[i, TERMINATED] = 0
            ints[i, TRUNCATED] = 0
            _begin(ints, floats, maps, observations, i, DRAWN, ci, cf)
            continue
        action, step = actions[i], ints[i, STEP] + 1
        ints[i, STEP] = step

        if step >= ints[i, NEXT_EVENT]:
            next_event = 2 * horizon + 1
            for slot in range(slots):
                due = ints[i, due_at + slot]
                if due == step:
                    ints[i, due_at + slot] = 0
                    place = ints[i, FIXED_INTS + slot]
                    ints[i, tiles_at + place] = FIRST_SLOT + slot
                    maps[i, ci[seen_at + place] + (SEES_FOOD if slot < food else SEES_ITEM)] = 1.0
                elif due:
                    next_event = min(next_event, due)
            if ints[i, NEXT_SLIP] == step:
                action = int(_uniform(ints, i, CHANCE) * N_ACTIONS)
                wait = _wait(cf, FLOAT_TABLES + 2 * horizon, horizon, _uniform(ints, i, CHANCE))
                ints[i, NEXT_SLIP] = step + wait
            ints[i, NEXT_EVENT] = min(next_event, ints[i, NEXT_SLIP])

        here = ints[i, CELL]
        cell = ci[INT_TABLES + action * area + here]
        at = ci[seen_at + cell]
        ints[i, CELL] = ints[i, REACHED] = cell
        energy, temp, integrity = floats[i, INTERNAL], floats[i, INTERNAL + 1], floats[i, INTERNAL + 2]
        energy -= cf[ENERGY_DECAY] + cf[ENERGY_DRIFT] * step
        if cell != here:
            energy -= cf[MOVE_COST]
        # What is seen tells what is there, and is needed for the observation anyway.
        integrity = integrity - cf[HAZARD_DAMAGE] if maps[i, at + SEES_HAZARD] else integrity + cf[REPAIR]
        heat = np.float64(maps[i, at + SEES_HEAT])
        if cf[CLIMATE] > 0.0:
            past, hour = divmod(step - 1, ci[SPELL_EVERY])
            if hour >= ci[SPELL_EVERY] - ci[SPELL_LENGTH]:
                first = ints[i, LAYOUT_SEED] if ci[SEASON] == OF_LAYOUT else ci[SEASON]
                heat += cf[spells_at + (first + past) % ci[YEAR]]
        heat += cf[INSULATION] * (floats[i, INTERNAL] - RESERVES)
        temp = temp + cf[TEMP_RATE] * (heat - temp)
        reward = 0.0
        if maps[i, at + SEES_FOOD] or maps[i, at + SEES_ITEM]:
            slot = ints[i, tiles_at + cell] - FIRST_SLOT
            law = FLOAT_TABLES if slot < food else FLOAT_TABLES + horizon
            due = step + _wait(cf, law, horizon, _uniform(ints, i, CHANCE))
            ints[i, due_at + slot] = due
            ints[i, NEXT_EVENT] = min(ints[i, NEXT_EVENT], due)
            ints[i, tiles_at + cell] = EMPTY
            maps[i, at + (SEES_FOOD if slot < food else SEES_ITEM)] = 0.0
            if slot < food:
                energy += cf[FOOD_ENERGY]
            elif not ci[EXPLORE]:
                reward = 1.0
        if ci[EXPLORE] and ints[i, visited_at + cell] == 0:
            ints[i, visited_at + cell] = 1
            reward = 1.0
        floats[i, INTERNAL] = min(max(energy, 0.0), 1.0)
        floats[i, INTERNAL + 1] = min(max(temp, 0.0), 1.0)
        floats[i, INTERNAL + 2] = min(max(integrity, 0.0), 1.0)
        floats[i, REWARD] = reward
        floats[i, TOTAL] += reward

        dead = False
        for j in range(3):
            x = floats[i, INTERNAL + j]
            floats[i, FINAL + j] = x
            dead |= x < floats[i, LOW + j] or x > floats[i, HIGH + j]
        late = step >= horizon and not dead
        ints[i, TERMINATED] = dead
        ints[i, TRUNCATED] = late
        if dead or late:
            ints[i, NEXT_EVENT] = 0
    _observe(ints, floats, maps, observations, 0, len(actions), ci, cf)
    if ci[SAME_STEP]:
        for i in range(len(actions)):
            if ints[i, NEXT_EVENT] == 0:
                observations[1, i] = observations[0, i]
                _begin(ints, floats, maps, observations, i, DRAWN, ci, cf)
    return -1


@_compile
def _begin_all(
    ints: Ints, floats: Reals, maps: Floats, observations: Floats, rows: Ints, layout_seeds: Ints, ci: Ints, cf: Reals
) -> None:
    for k in range(len(rows)):
        _begin(ints, floats, maps, observations, rows[k], layout_seeds[k], ci, cf)


@_compile
def _observe_all(
    ints: Ints, floats: Reals, maps: Floats, observations: Floats, rows: Ints, ci: Ints, cf: Reals
) -> None:
    for k in range(len(rows)):
        _observe(ints, floats, maps, observations, rows[k], rows[k] + 1, ci, cf)
