"""GridLife's dynamics for many worlds at once, in NumPy."""

import numpy as np
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import (
    ACTIONS,
    RESERVES,
    SEES_FOOD,
    SEES_HEAT,
    SEES_ITEM,
    GridLifeParams,
    first_spell,
    tables,
    weather,
)
from persist_sb3.envs.interface import Interface
from persist_sb3.envs.layout import generate, padded_maps
from persist_sb3.envs.worlds import EMPTY, FIRST_SLOT, HAZARD, LAYOUTS, NEVER, Worlds, tile_codes


class NumpyEngine:
    """
    :param worlds: changed in place
    :param params: the worlds' parameters
    :param interface: what is observed
    :param layouts: first and last-plus-one layout seed
    :param same_step: whether an episode that ends is followed by the next within the step, or by the next step
    """

    def __init__(
        self, worlds: Worlds, params: GridLifeParams, interface: Interface, layouts: tuple[int, int], same_step: bool
    ) -> None:
        self._worlds = worlds
        self._params = params
        self._interface = interface
        self._layouts = layouts
        self._same_step = same_step
        self._table = tables(params)
        self._channel = np.repeat([SEES_FOOD, SEES_ITEM], [params.food, params.items])

    def begin(self, rows: NDArray[np.intp], layout_seeds: NDArray[np.int64] | None = None) -> None:
        """
        :param rows: worlds whose next episode begins, ``(k,)``
        :param layout_seeds: their layouts, ``(k,)``; by default drawn
        """
        worlds, params = self._worlds, self._params
        if layout_seeds is None:
            low, high = self._layouts
            layout_seeds = low + (worlds.uniform(rows, LAYOUTS) * (high - low)).astype(np.int64)
        layouts = generate(params, layout_seeds.astype(np.uint64))
        worlds.layout_seed[rows] = layout_seeds
        everything = np.ones_like(layouts.places, dtype=bool)
        worlds.maps[rows] = padded_maps(params, layouts.heat, layouts.hazard, layouts.places, everything)
        worlds.places[rows] = layouts.places
        worlds.due[rows] = 0
        worlds.tiles[rows] = tile_codes(layouts.hazard, layouts.places, everything)
        worlds.cell[rows] = layouts.start
        if params.task == "explore":
            worlds.visited[rows] = 0
            worlds.visited[rows, layouts.start] = 1
        worlds.step[rows] = 0
        worlds.total[rows] = 0.0
        u = np.stack([worlds.uniform(rows) for _ in range(worlds.internal.shape[1])], axis=1)
        worlds.internal[rows] = np.clip(worlds.setpoint[rows] + worlds.spread[rows] * (2.0 * u - 1.0), 0.0, 1.0)
        first_slip = 1 + np.searchsorted(self._table.slip_wait, worlds.uniform(rows), side="right")
        worlds.next_slip[rows] = worlds.next_event[rows] = first_slip
        self.observe(rows)

    def step(self, actions: NDArray[np.int64]) -> int:
        """
        :param actions: ``(n,)``
        :return: the first world whose action is not an index into ``ACTIONS``, in which case nothing is done, or -1
        """
        worlds, params, table = self._worlds, self._params, self._table
        wrong = (actions < 0) | (actions >= len(ACTIONS))
        if wrong.any():
            return int(wrong.argmax())
        over = np.flatnonzero(worlds.next_event == 0)
        rows = np.flatnonzero(worlds.next_event)
        step, moves = worlds.step[rows] + 1, actions[rows]
        worlds.step[rows] = step
        busy = step >= worlds.next_event[rows]
        if busy.any():
            moves[busy] = self._happen(rows[busy], moves[busy])

        here = worlds.cell[rows]
        cell = table.targets[moves, here]
        worlds.cell[rows] = worlds.reached[rows] = cell
        reserves, temp, integrity = worlds.internal[rows].T
        decay = params.energy_decay + params.energy_drift * step
        energy = reserves - decay - params.move_cost * (cell != here)
        tile = worlds.tiles[rows, cell]
        integrity = np.where(tile == HAZARD, integrity - params.hazard_damage, integrity + params.repair)
        heat = worlds.seen[rows, table.seen[cell] + SEES_HEAT].astype(np.float64)
        if params.climate:
            heat += weather(params, first_spell(params, worlds.layout_seed[rows]), step)
        heat += params.insulation * (reserves - RESERVES)
        temp = temp + params.temp_rate * (heat - temp)
        taken = tile >= FIRST_SLOT
        collected = np.zeros(len(rows), dtype=bool)
        if taken.any():
            is_food = self._take(rows[taken], tile[taken] - FIRST_SLOT)
            energy[taken] += params.food_energy * is_food
            collected[taken] = ~is_food
        internal = np.clip(np.stack([energy, temp, integrity], axis=1), 0.0, 1.0)
        worlds.internal[rows] = worlds.final[rows] = internal
        if params.task == "explore":
            worlds.reward[rows] = worlds.visited[rows, cell] == 0
            worlds.visited[rows, cell] = 1
        else:
            worlds.reward[rows] = collected
        worlds.total[rows] += worlds.reward[rows]

        dead = ((internal < worlds.low[rows]) | (internal > worlds.high[rows])).any(axis=1)
        late = (step >= params.horizon) & ~dead
        worlds.terminated[rows] = dead
        worlds.truncated[rows] = late
        ended = rows[dead | late]
        worlds.next_event[ended] = 0
        self.observe(rows)
        worlds.reward[over] = 0.0
        worlds.terminated[over] = worlds.truncated[over] = 0
        if self._same_step:
            worlds.observations[1, ended] = worlds.observations[0, ended]
            over = np.concatenate([over, ended])
        if len(over):
            self.begin(over)
        return -1

    def _happen(self, rows: NDArray[np.intp], moves: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is due at this step: regrowth, and slips, which replace moves."""
        worlds = self._worlds
        step = worlds.step[rows]
        which, slot = np.nonzero(worlds.due[rows] == step[:, None])
        back = rows[which]
        worlds.due[back, slot] = 0
        worlds.tiles[back, worlds.places[back, slot]] = FIRST_SLOT + slot
        self._show(back, slot, 1.0)
        slips = worlds.next_slip[rows] == step
        slipping = rows[slips]
        moves[slips] = (worlds.uniform(slipping) * len(ACTIONS)).astype(np.int64)
        wait = 1 + np.searchsorted(self._table.slip_wait, worlds.uniform(slipping), side="right")
        worlds.next_slip[slipping] = step[slips] + wait
        worlds.schedule(rows)
        return moves

    def _take(self, rows: NDArray[np.intp], slot: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Food is eaten and items are collected; which of them are food."""
        worlds, table = self._worlds, self._table
        is_food = slot < self._params.food
        u = worlds.uniform(rows)
        wait = np.where(
            is_food,
            np.searchsorted(table.food_wait, u, side="right"),
            np.searchsorted(table.item_wait, u, side="right"),
        )
        due = worlds.step[rows] + 1 + wait
        worlds.due[rows, slot] = due
        worlds.next_event[rows] = np.minimum(worlds.next_event[rows], due)
        worlds.tiles[rows, worlds.places[rows, slot]] = EMPTY
        self._show(rows, slot, 0.0)
        return is_food

    def _show(self, rows: NDArray[np.intp], slot: NDArray[np.int64], value: float) -> None:
        worlds = self._worlds
        worlds.seen[rows, self._table.seen[worlds.places[rows, slot]] + self._channel[slot]] = value

    def observe(self, rows: NDArray[np.intp]) -> None:
        """
        :param rows: worlds whose observations are made anew, ``(k,)``
        """
        worlds, interface = self._worlds, self._interface
        observation = np.empty((len(rows), interface.size), dtype=np.float32)
        window, internal, scent = np.split(observation, [interface.window_size, interface.window_size + 3], axis=1)
        cell = worlds.cell[rows]
        window[:] = worlds.seen[rows[:, None], self._table.window[cell]]
        internal[:] = worlds.internal[rows] * worlds.shown[rows]
        if interface.scent:
            scent[:] = self._scent(rows, cell)
        worlds.observations[0, rows] = observation

    def _scent(self, rows: NDArray[np.intp], cell: NDArray[np.int64]) -> NDArray[np.float64]:
        worlds, params = self._worlds, self._params
        if not params.food:
            return np.zeros((len(rows), 2))
        row, col = np.divmod(cell[:, None], params.size)
        food_row, food_col = np.divmod(worlds.places[rows, : params.food], params.size)
        down, right = food_row - row, food_col - col
        absent = worlds.due[rows, : params.food] > 0
        distance = np.where(absent, NEVER, np.abs(down) + np.abs(right))
        pick = np.arange(len(rows)), distance.argmin(axis=1)
        scent = self._table.scent[down[pick] + params.size - 1, right[pick] + params.size - 1]
        scent[absent.all(axis=1)] = 0.0
        return scent
