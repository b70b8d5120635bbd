"""Many GridLife worlds stepped together: the core of the vector environments, and a simulator for planners."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from persist_sb3.envs.dynamics import (
    ACTIONS,
    CONSTRAINTS,
    INTERNAL_NAMES,
    SEES_HEAT,
    SETPOINT,
    GridLifeParams,
    tables,
)
from persist_sb3.envs.interface import Interface, checked_hidden, limits, make_viability
from persist_sb3.envs.layout import GOLDEN, SPLITS
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.envs.vectorised import NumpyEngine
from persist_sb3.envs.worlds import HAZARD, Worlds, tile_codes
from persist_sb3.streams import splitmix64
from persist_sb3.viability import ViabilitySet

Backend = Literal["auto", "numba", "numpy"]
Rows = slice | NDArray[np.intp]
ALL = slice(None)


def _engine_class(backend: Backend) -> Any:
    if backend not in ("auto", "numba", "numpy"):
        raise ValueError(f"GridLife's backend must be 'auto', 'numba' or 'numpy', not {backend!r}")
    if backend == "numpy" or (backend == "auto" and find_spec("numba") is None):
        return NumpyEngine
    try:
        from persist_sb3.envs.compiled import NumbaEngine
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "backend='numba' needs numba: pip install 'persist-sb3[numba]', or use backend='auto'", name=error.name
        ) from error
    return NumbaEngine


class GridLifeCore:
    """
    ``n`` worlds of GridLife, stepped together. World ``i`` does what a
    :class:`~persist_sb3.envs.gridlife.GridLifeEnv` with the same seed and actions does, to the last bit, on both
    backends.

    An episode that ends is followed by the next: with ``same_step``, at once, and :attr:`final_observations`,
    :attr:`final_internal` and :attr:`final_cells` keep how it ended; without, at the next step, whose action is then
    ignored.

    The arrays it gives are its own and change with the next step: copy what is to be kept.

    :param num_envs: number of worlds, ``n``
    :param params: their parameters
    :param backend: "numba" (compiled), "numpy", or "auto": numba if it is installed
    :param same_step: when a new episode begins
    :param scent: whether the scent of food is observed
    :param layouts: first and last-plus-one seed of the layouts that episodes are played on
    :param viability: limits of the internal variables, each on one of them
    :raises ModuleNotFoundError: if numba is asked for and not installed
    """

    def __init__(
        self,
        num_envs: int,
        params: GridLifeParams | None = None,
        *,
        backend: Backend = "auto",
        same_step: bool = True,
        scent: bool = False,
        layouts: tuple[int, int] = SPLITS["train"],
        viability: ViabilitySet | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}")
        self.num_envs = num_envs
        self.params = params = params or GridLifeParams()
        interface = Interface(params, flat=True, continuous=False, scent=scent)
        self._worlds = worlds = Worlds(num_envs, params, interface.size)
        self._engine = _engine_class(backend)(worlds, params, interface, layouts, same_step)
        self._masks = tables(params).masks
        self._begun = np.zeros(num_envs, dtype=bool)
        self._ready = False
        self._everyone = np.arange(num_envs)
        self.observations: NDArray[np.float32] = worlds.observations[0]  #: ``(n, size)``, as of the flat environment
        self.final_observations: NDArray[np.float32] = worlds.observations[1]  #: ``(n, size)``
        self.internal: NDArray[np.float64] = worlds.internal  #: ``(n, 3)``
        self.final_internal: NDArray[np.float64] = worlds.final  #: ``(n, 3)``, after the last step
        self.cells: NDArray[np.int64] = worlds.cell  #: ``(n,)`` tiles of the agents, numbered row by row
        self.final_cells: NDArray[np.int64] = worlds.reached  #: ``(n,)``, after the last step
        self.layout_seeds: NDArray[np.int64] = worlds.layout_seed  #: ``(n,)``
        self.elapsed: NDArray[np.int64] = worlds.step  #: ``(n,)`` steps of each episode so far
        self.set_viability(viability or make_viability(CONSTRAINTS, SETPOINT))
        self.seed(np.random.SeedSequence().generate_state(num_envs, np.uint64))

    def set_viability(self, viability: ViabilitySet, rows: Rows = ALL) -> None:
        """
        :param viability: limits that end an episode, each on one internal variable
        :param rows: the worlds they are for; by default all
        """
        worlds = self._worlds
        worlds.low[rows], worlds.high[rows], worlds.setpoint[rows], worlds.spread[rows] = limits(viability, self.params)

    def set_hidden(self, names: Sequence[str], rows: Rows = ALL) -> None:
        """
        :param names: internal variables whose entries of the observation read 0, from the next observation on
        :param rows: the worlds they are hidden in; by default all
        """
        hidden = checked_hidden(names)
        self._worlds.shown[rows] = [name not in hidden for name in INTERNAL_NAMES]

    def seed(self, seeds: Sequence[int] | NDArray[Any], rows: Rows = ALL) -> None:
        """
        :param seeds: one a world, ``(k,)``
        :param rows: the worlds to seed, ``(k,)``; by default all
        """
        key = splitmix64(np.array([int(seed) % 2**64 for seed in seeds], dtype=np.uint64))
        steps = np.array([1, 2], dtype=np.uint64) * np.uint64(GOLDEN)
        self._worlds.streams[rows] = splitmix64(key[:, None] + steps)

    def begin(self, rows: Rows = ALL, layout_seeds: Sequence[int] | NDArray[np.int64] | None = None) -> None:
        """
        Begin an episode.

        :param rows: in these worlds, ``(k,)``; by default in all
        :param layout_seeds: their layouts, ``(k,)``; by default drawn
        """
        which = self._everyone[rows]
        self._engine.begin(which, None if layout_seeds is None else np.asarray(layout_seeds, dtype=np.int64))
        self._begun[which] = True
        self._ready = bool(self._begun.all())

    def step(
        self, actions: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """
        :param actions: indices into ``ACTIONS``, ``(n,)``
        :return: observations ``(n, size)``, rewards, and 1 where the episode was terminated or truncated, ``(n,)`` each
        :raises ResetNeeded: before the first episode
        :raises TypeError: if these are not ``n`` integers
        :raises ValueError: if one is not an action
        """
        if not self._ready:
            self.require_begun()
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise TypeError(f"GridLife's actions must be {self.num_envs} integers, not {actions!r}")
        wrong = self._engine.step(actions.astype(np.int64, copy=False))
        if wrong >= 0:
            raise ValueError(
                f"GridLife's action must be in 0 ... {len(ACTIONS) - 1}; in world {wrong} it is {actions[wrong]}"
            )
        worlds = self._worlds
        return self.observations, worlds.reward, worlds.terminated, worlds.truncated

    def require_begun(self, rows: Rows = ALL) -> None:
        """
        :param rows: worlds, ``(k,)``; by default all
        :raises ResetNeeded: if one of them has had no episode yet
        """
        which = self._everyone[rows]
        missing = which[~self._begun[which]]
        if len(missing):
            raise ResetNeeded(f"call reset() first: worlds {missing} were never reset")

    def action_masks(self, rows: Rows = ALL) -> NDArray[np.bool_]:
        """
        :param rows: of which worlds, ``(k,)``; by default all
        :return: which actions do not run into the edge of the grid, ``(k, 5)``
        """
        return self._masks[self._worlds.cell[rows]]

    def snapshot(self, rows: Rows = ALL) -> Snapshot:
        """
        :param rows: of which worlds, ``(k,)``; by default all
        :return: their complete state; stepping later does not change it
        :raises ResetNeeded: before their first episode
        """
        which = self._everyone[rows]
        self.require_begun(which)
        worlds = self._worlds
        return Snapshot(
            params=self.params,
            internal=worlds.internal[which],
            total=worlds.total[which],
            cell=worlds.cell[which],
            step=worlds.step[which],
            alive=worlds.next_event[which] != 0,
            next_slip=worlds.next_slip[which],
            layout_seed=worlds.layout_seed[which],
            streams=worlds.streams[which],
            heat=worlds.grid[which, :, :, SEES_HEAT].reshape(len(which), -1),
            hazard=worlds.tiles[which] == HAZARD,
            places=worlds.places[which],
            due=worlds.due[which],
            visited=worlds.visited[which] != 0,
        )

    def restore(self, snapshot: Snapshot, rows: Rows = ALL) -> None:
        """
        Go back to a snapshot: the same actions then lead to the same trajectories, to the last bit.

        :param snapshot: one world for all rows, or ``k`` worlds
        :param rows: the worlds that become as they were, ``(k,)``; by default all
        :raises ValueError: if its worlds have other parameters
        """
        snapshot.require(self.params)
        worlds, which = self._worlds, self._everyone[rows]
        for name in ("internal", "total", "cell", "step", "next_slip", "layout_seed", "streams", "places", "due"):
            getattr(worlds, name)[which] = getattr(snapshot, name)
        worlds.visited[which] = snapshot.visited
        worlds.tiles[which] = tile_codes(*map(np.atleast_2d, (snapshot.hazard, snapshot.places, snapshot.due == 0)))
        worlds.maps[which] = snapshot.maps()
        worlds.schedule(which)
        worlds.next_event[which] *= snapshot.alive
        self._engine.observe(which)
        self._begun[which] = True
        self._ready = bool(self._begun.all())

    def redraw_chance(self, seeds: Sequence[int] | NDArray[Any], rows: Rows = ALL) -> None:
        """
        Forget what chance has in store, and draw it anew. Copies of one snapshot share their future slips and regrowth;
        this makes them independent samples of the future.

        :param seeds: one a world, ``(k,)``
        :param rows: the worlds, ``(k,)``; by default all
        """
        worlds, which = self._worlds, self._everyone[rows]
        coming_layouts = worlds.streams[which, 1]
        self.seed(seeds, which)
        worlds.streams[which, 1] = coming_layouts
        table, over, step = tables(self.params), worlds.next_event[which] == 0, worlds.step[which]
        laws = [table.food_wait] * self.params.food + [table.item_wait] * self.params.items
        for slot, law in enumerate(laws):
            due = step + 1 + np.searchsorted(law, worlds.uniform(which), side="right")
            worlds.due[which, slot] = np.where(worlds.due[which, slot], due, 0)
        worlds.next_slip[which] = step + 1 + np.searchsorted(table.slip_wait, worlds.uniform(which), side="right")
        worlds.schedule(which)
        worlds.next_event[which[over]] = 0
