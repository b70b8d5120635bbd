"""GridLife as a single gymnasium environment, in scalar Python."""

from bisect import bisect_right
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from persist_sb3.envs.controls import Controls, Settings
from persist_sb3.envs.dynamics import (
    ACTIONS,
    CHANNELS,
    INTERNAL_NAMES,
    RESERVES,
    SEES_FOOD,
    SEES_ITEM,
    first_spell,
    positions,
    tables,
)
from persist_sb3.envs.interface import forced_layout_seed, limits
from persist_sb3.envs.layout import GOLDEN, generate, padded_maps
from persist_sb3.envs.render import Window
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.envs.worlds import EMPTY, FIRST_SLOT, HAZARD, tile_codes
from persist_sb3.streams import splitmix64

MASK = 2**64 - 1
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
#: Layouts of coming episodes are made together, since NumPy takes hardly longer for many than for one.
MOST_AHEAD = 32

Observation = Any
#: Heat, tile codes, places of food and items, and all there is to see as one flat array.
Scenery = tuple[list[float], list[int], list[int], NDArray[np.float32]]


def mixed(counter: int) -> int:
    """
    SplitMix64's output function for one integer.

    :param counter: 64 bits
    :return: 64 well-mixed bits
    """
    z = ((counter ^ (counter >> 30)) * MIX_1) & MASK
    z = ((z ^ (z >> 27)) * MIX_2) & MASK
    return z ^ (z >> 31)


class GridLifeEnv(Controls, gym.Env[Observation, Any]):
    """
    A grid world with heat, food, hazards and items. The agent has energy, temperature and integrity, and dies when
    one of them leaves its limits.

    Food restores energy, but lies in the heat, in the cold, or behind hazards; hazards cost integrity, which mends
    slowly; temperature relaxes towards that of the tile. The task is to collect items (or, as a variant, to see new
    tiles).

    - **Actions**: ``Discrete(5)``: stay, up, down, left, right. With ``continuous``: ``Box(-1, 1, (2,))``, of which the
      larger component moves the agent one tile if it is further than ``dead_zone`` from zero: first component down (up
      if negative), second right (left if negative).
    - **Observation**: a Dict of ``window``, the flattened ``(5, W, W)`` surroundings with channels food, item, hazard,
      heat, outside, and the agent in the middle; ``internal``, the three variables; with ``scent``, also ``scent``:
      direction (rows down, columns right) of the nearest food, the absolute values adding up to a strength that is 1
      next to it and fades with distance, 0 while there is none. With ``flat``: the same in one Box, in this order.
    - **Reward**: 1 for each item (``task="items"``) or new tile (``task="explore"``).
    - **End**: ``terminated`` at the first violated constraint, else ``truncated`` after ``horizon`` steps.
    - **Info**: ``internal``, the true variables in float64; ``position``, row and column of the agent's tile; at a
      reset ``layout_seed``; at a step ``cost``, 1 if it violates a constraint.

    :param render_mode: None, "rgb_array" or "human"
    :param flat: one flat Box as observation instead of a Dict
    :param continuous: two real numbers as action instead of one of five
    :param scent: whether the scent of food is observed
    :param split: which layouts episodes are played on: "train", "validation" or "test"
    :param layout_seed: if given, the one layout of all episodes
    :param constraints: limits, each on one of energy, temp and integrity
    :param setpoint: where the variables are at their best, and start; ``(3,)``
    :param hidden: internal variables that the observation does not show: they read 0
    :param dynamics: parameters of :class:`~persist_sb3.envs.dynamics.GridLifeParams`
    :raises TypeError: if a parameter is unknown
    :raises ValueError: if a value is out of its range, or a constraint is not a limit of a single variable
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"GridLife's render_mode must be None, 'rgb_array' or 'human', not {render_mode!r}")
        checked = Settings(**settings)
        self._adopt(checked)
        params = self.params
        self.render_mode = render_mode
        self._window_on_screen: Window | None = None
        self.observation_space = self._interface.observation_space
        self.action_space = self._interface.action_space
        self._range = checked.layouts
        self._explores = params.task == "explore"
        self._rates = (
            params.energy_decay,
            params.energy_drift,
            params.move_cost,
            params.food_energy,
            params.temp_rate,
            params.hazard_damage,
            params.repair,
            params.horizon,
        )

        table = tables(params)
        self._targets = table.targets.tolist()
        # The common actions, found without checking them first.
        self._usual = {} if self._interface.continuous else dict(enumerate(self._targets))
        self._masks = table.masks
        self._waits = [table.food_wait.tolist()] * params.food + [table.item_wait.tolist()] * params.items
        self._slip_wait = table.slip_wait.tolist()
        self._plain = not (params.climate or params.insulation)
        self._spells = table.spells.tolist()
        self._scents = table.scent.tolist()
        self._seen_at = table.seen.tolist()
        self._positions = positions(params.size)
        self._channel = [SEES_FOOD] * params.food + [SEES_ITEM] * params.items
        # Behind the maps lie the internal variables and the scent, so that one indexing makes a flat observation.
        self._maps_size = len(CHANNELS) * (params.size + 2 * params.radius) ** 2
        extra = self._interface.size - self._interface.window_size
        behind = np.broadcast_to(self._maps_size + np.arange(extra), (params.size**2, extra))
        self._seen = list(np.concatenate([table.window, behind], axis=1) if self._interface.flat else table.window)

        # Copied for each info: faster than a new array of three numbers.
        self._internal = np.zeros(len(INTERNAL_NAMES))
        self._ahead: list[tuple[int, int, Scenery]] = []
        self._ahead_size = 1
        self._seeded = False
        self._steps = self._next_event = 0
        self._viability_changed()
        self._hidden_changed()

    @property
    def elapsed(self) -> int:
        return self._steps

    def get_internal(self) -> NDArray[np.float64]:
        self._require_begun()
        return np.array([self._energy, self._temp, self._integrity])

    def action_masks(self) -> NDArray[np.bool_]:
        self._interface.require_discrete()
        self._require_begun()
        return self._masks[self._cell].copy()

    def _viability_changed(self) -> None:
        low, high, setpoint, spread = limits(self._viability, self.params)
        self._bounds = tuple(np.stack([low, high], axis=1).ravel().tolist())
        self._starts = list(zip(setpoint.tolist(), spread.tolist(), strict=True))

    def _hidden_changed(self) -> None:
        self._hidden_columns = [INTERNAL_NAMES.index(name) for name in self._hidden]

    def _require_begun(self) -> None:
        if not self._seeded:
            raise ResetNeeded("call reset() first: this environment was never reset")

    # Chance.

    def _seed_streams(self, seed: int) -> None:
        key = mixed(seed & MASK)
        self._chance, self._layouts = mixed((key + GOLDEN) & MASK), mixed((key + 2 * GOLDEN) & MASK)
        self._seeded = True
        self._ahead.clear()
        self._ahead_size = 1

    def _uniform(self) -> float:
        self._chance = z = (self._chance + GOLDEN) & MASK
        z = ((z ^ (z >> 30)) * MIX_1) & MASK
        z = ((z ^ (z >> 27)) * MIX_2) & MASK
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53

    def _wait(self, law: list[float]) -> int:
        return 1 + bisect_right(law, self._uniform())

    def _next_layout(self) -> tuple[int, int, Scenery]:
        if not self._ahead:
            steps = np.arange(1, self._ahead_size + 1, dtype=np.uint64) * np.uint64(GOLDEN)
            u = (splitmix64(np.uint64(self._layouts) + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53
            low, high = self._range
            self._ahead = self._grounds(low + (u * (high - low)).astype(np.uint64))[::-1]
            self._ahead_size = min(2 * self._ahead_size, MOST_AHEAD)
        self._layouts = (self._layouts + GOLDEN) & MASK
        return self._ahead.pop()

    def _grounds(self, seeds: NDArray[np.uint64]) -> list[tuple[int, int, Scenery]]:
        heat, hazard, places, start = generate(self.params, seeds)
        everything = np.ones_like(places, dtype=bool)
        return list(zip(seeds.tolist(), start.tolist(), self._scenery(heat, hazard, places, everything), strict=True))

    def _enter(self, scenery: Scenery) -> None:
        self._heat, self._tiles, self._places, self._world = scenery
        self._shown = self._world[self._maps_size :]

    def _scenery(
        self,
        heat: NDArray[np.float32],
        hazard: NDArray[np.bool_],
        places: NDArray[np.int64],
        present: NDArray[np.bool_],
    ) -> list[Scenery]:
        maps = padded_maps(self.params, heat, hazard, places, present).reshape(len(heat), -1)
        behind = np.zeros((len(heat), self._interface.size - self._interface.window_size), dtype=np.float32)
        tiles = tile_codes(hazard, places, present)
        seen = np.concatenate([maps, behind], axis=1)
        return list(zip(heat.tolist(), tiles.tolist(), places.tolist(), seen, strict=True))

    # The world.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """
        :param seed: if given, all that follows depends on it and on the actions alone
        :param options: ``{"layout_seed": k}`` plays this episode on layout ``k``, of whichever split
        :return: observation and info
        """
        super().reset(seed=seed)
        forced = forced_layout_seed(options)
        if seed is not None:
            self._seed_streams(seed)
        elif not self._seeded:
            self._seed_streams(int(self.np_random.integers(2**63)))
        ground = self._next_layout() if forced is None else self._grounds(np.array([forced], dtype=np.uint64))[0]
        self._layout_seed, self._cell, scenery = ground
        self._enter(scenery)
        self._due = [0] * self.params.slots
        self._visited = bytearray(self.params.size**2)
        self._visited[self._cell] = self._explores
        self._steps = 0
        self._total = 0.0
        # The chances of a start come from the stream in this order.
        self._energy, self._temp, self._integrity = (
            min(max(setpoint + spread * (2.0 * self._uniform() - 1.0), 0.0), 1.0) for setpoint, spread in self._starts
        )
        self._alive = True
        self._next_slip = self._next_event = self._wait(self._slip_wait)
        self.forget_intervention()
        if self.render_mode == "human":
            self.render()
        position = self._positions[self._cell]
        info = {"internal": self.get_internal(), "position": position, "layout_seed": self._layout_seed}
        return self._observe(), info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        :param action: of the action space
        :return: observation, reward, terminated, truncated, info
        :raises ResetNeeded: before the first reset, and after an episode's end
        :raises TypeError: if the action is not of the kind or shape of the action space
        :raises ValueError: if the action is outside of the action space
        """
        try:
            targets = self._usual[action]
        except (KeyError, TypeError):
            targets = self._targets[self._interface.move(action)]
        step = self._steps + 1
        if step >= self._next_event:
            targets = self._happen(step, targets)
        self._steps = step
        decay, drift, move_cost, food_energy, temp_rate, hazard_damage, repair, horizon = self._rates
        cell = targets[self._cell]
        energy = self._energy - (decay + drift * step)
        if cell != self._cell:
            energy -= move_cost
            self._cell = cell
        reward = 0.0
        tile = self._tiles[cell]
        if tile == HAZARD:
            integrity = self._integrity - hazard_damage
        else:
            integrity = self._integrity + repair
            if tile:
                if self._take(tile - FIRST_SLOT, step):
                    energy += food_energy
                elif not self._explores:
                    reward = 1.0
        temp = self._temp
        if self._plain:
            # Between two numbers that are in [0, 1], it needs no clipping.
            self._temp = temp = temp + temp_rate * (self._heat[cell] - temp)
        else:
            temp = temp + temp_rate * (self._felt(cell, step) - temp)
            self._temp = temp = 0.0 if temp < 0.0 else 1.0 if temp > 1.0 else temp
        self._energy = energy = 0.0 if energy < 0.0 else 1.0 if energy > 1.0 else energy
        self._integrity = integrity = 0.0 if integrity < 0.0 else 1.0 if integrity > 1.0 else integrity
        if self._explores and not self._visited[cell]:
            self._visited[cell] = 1
            reward = 1.0
        if reward:
            self._total += reward

        low_energy, high_energy, low_temp, high_temp, low_integrity, high_integrity = self._bounds
        dead = not (
            low_energy <= energy <= high_energy
            and low_temp <= temp <= high_temp
            and low_integrity <= integrity <= high_integrity
        )
        late = step >= horizon and not dead
        if dead or late:
            self._alive = False
            self._next_event = 0
        internal = self._internal
        internal[0] = energy
        internal[1] = temp
        internal[2] = integrity
        info = {"internal": internal.copy(), "position": self._positions[cell], "cost": 1.0 if dead else 0.0}
        if self.render_mode == "human":
            self.render()
        return self._observe(), reward, dead, late, info

    def _happen(self, step: int, targets: list[int]) -> list[int]:
        """What is due at this step: regrowth, and a slip, which replaces the tiles that the action leads to."""
        if not self._next_event:
            self._require_begun()
            raise ResetNeeded("call reset() before step(): the episode ended")
        for slot, due in enumerate(self._due):
            if due == step:
                self._due[slot] = 0
                self._tiles[self._places[slot]] = FIRST_SLOT + slot
                self._show(slot, 1.0)
        if step == self._next_slip:
            targets = self._targets[int(self._uniform() * len(ACTIONS))]
            self._next_slip = step + self._wait(self._slip_wait)
        self._next_event = min([self._next_slip, *filter(None, self._due)])
        return targets

    def _take(self, slot: int, step: int) -> bool:
        """The food is eaten or the item collected; whether it is food."""
        self._due[slot] = due = step + self._wait(self._waits[slot])
        self._next_event = min(self._next_event, due)
        self._tiles[self._places[slot]] = EMPTY
        self._show(slot, 0.0)
        return slot < self.params.food

    def _felt(self, cell: int, step: int) -> float:
        """Heat of a tile with that of the weather and of the reserves."""
        params, heat = self.params, self._heat[cell]
        past, hour = divmod(step - 1, params.spell_every)
        if hour >= params.spell_every - params.spell_length:
            heat += self._spells[(first_spell(params, self._layout_seed) + past) % params.year]
        return heat + params.insulation * (self._energy - RESERVES)

    def _show(self, slot: int, value: float) -> None:
        self._world[self._seen_at[self._places[slot]] + self._channel[slot]] = value

    def _observe(self) -> Observation:
        shown, interface = self._shown, self._interface
        shown[0] = self._energy
        shown[1] = self._temp
        shown[2] = self._integrity
        if self._hidden:
            shown[self._hidden_columns] = 0.0
        if interface.scent:
            shown[3], shown[4] = self._scent()
        window = self._world[self._seen[self._cell]]
        if interface.flat:
            return window
        if interface.scent:
            return {"window": window, "internal": shown[:3].copy(), "scent": shown[3:].copy()}
        return {"window": window, "internal": shown.copy()}

    def _scent(self) -> list[float]:
        size = self.params.size
        row, col = divmod(self._cell, size)
        nearest, scent = 2 * size, [0.0, 0.0]
        for slot in range(self.params.food):
            if not self._due[slot]:
                food_row, food_col = divmod(self._places[slot], size)
                distance = abs(food_row - row) + abs(food_col - col)
                if distance < nearest:
                    nearest = distance
                    scent = self._scents[food_row - row + size - 1][food_col - col + size - 1]
        return scent

    def snapshot(self) -> Snapshot:
        self._require_begun()
        return Snapshot(
            params=self.params,
            internal=self.get_internal(),
            total=np.array(self._total),
            cell=np.array(self._cell),
            step=np.array(self._steps),
            alive=np.array(self._alive),
            next_slip=np.array(self._next_slip),
            layout_seed=np.array(self._layout_seed),
            streams=np.array([self._chance, self._layouts], dtype=np.uint64),
            heat=np.array(self._heat, dtype=np.float32),
            hazard=np.array(self._tiles) == HAZARD,
            places=np.array(self._places, dtype=np.int64),
            due=np.array(self._due, dtype=np.int64),
            visited=np.frombuffer(self._visited, dtype=np.bool_).copy(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        snapshot.require(self.params)
        snapshot.require_one()
        due = snapshot.due[None]
        scenery = self._scenery(snapshot.heat[None], snapshot.hazard[None], snapshot.places[None], due == 0)
        self._enter(scenery[0])
        self._energy, self._temp, self._integrity = snapshot.internal.tolist()
        self._total = float(snapshot.total)
        self._cell = int(snapshot.cell)
        self._steps = int(snapshot.step)
        self._alive = bool(snapshot.alive)
        self._next_slip = int(snapshot.next_slip)
        self._layout_seed = int(snapshot.layout_seed)
        self._chance, self._layouts = snapshot.streams.tolist()
        self._seeded = True
        self._ahead.clear()
        self._ahead_size = 1
        self._due = snapshot.due.tolist()
        self._visited = bytearray(snapshot.visited.tobytes())
        self._next_event = min([self._next_slip, *filter(None, self._due)]) if self._alive else 0
        self.forget_intervention()

    def render(self) -> Any:
        """
        :return: with ``render_mode="rgb_array"`` a picture, ``(height, width, 3)``; with "human" it goes to the screen
        :raises ResetNeeded: before the first reset
        """
        if self.render_mode is None:
            gym.logger.warn(
                'render() does nothing without a render_mode, for example gym.make(..., render_mode="rgb_array")'
            )
            return None
        picture = self.picture()
        if self.render_mode == "rgb_array":
            return picture
        if self._window_on_screen is None:
            self._window_on_screen = Window(self.metadata["render_fps"])
        self._window_on_screen.show(picture)
        return None

    def close(self) -> None:
        if self._window_on_screen is not None:
            self._window_on_screen.close()
            self._window_on_screen = None
