"""A planner that knows the true dynamics and sees the whole map: what staying alive takes, without learning."""

from collections.abc import Callable
from typing import Any

import numpy as np

from persist_sb3.envs.dynamics import ACTIONS, CONSTRAINTS, SETPOINT, GridLifeParams, first_spell
from persist_sb3.envs.interface import limits, make_viability
from persist_sb3.envs.oracle.model import Bools, Floats, Foresight, Ints
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.viability import ViabilitySet

#: How much the end of a plan counts, in steps.
END_WEIGHT = 5.0
#: Items are worth less the later they are collected; otherwise a plan made anew each step would put them off for ever.
DISCOUNT = 0.95
#: The least and the greatest margin that the logarithm is taken of.
LEAST, GREATEST = 1e-3, 1.0


class BeamPlanner:
    """
    Beam search over action sequences, in ``n`` worlds at once.

    The plan knows all there is to see, on the whole map, and the weather, and nothing of what chance has in store: it
    foresees no slip, and what has been eaten or collected does not come back. It maximises a log barrier, which as in
    interior-point methods (Boyd & Vandenberghe, Convex Optimization, 2004, 11.2) keeps to the middle of the viability
    set:

    ``sum_t [b(x_t) + task_weight 0.95^t items_t] + 5 b(y)``, with ``b(x) = sum_j log(margin of variable j)``

    ``y`` is the end of the plan, less the energy that walking from there to the nearest food takes: so food pulls from
    further away than the plan reaches. Paths that leave the viability set are given up; where all do, the plan is one
    that stays inside longest. Of the paths that lead to the same tile in the same number of steps only the best is
    kept, lest orders of the same moves fill the beam.

    :param params: the worlds' parameters
    :param width: paths kept at each step
    :param depth: steps looked ahead
    :param task_weight: what an item is worth against the barrier; 0 merely survives, 3 collects most of them
    :param viability: limits on single variables to stay within. Default: those GridLife has by default
    :raises ValueError: if the width or depth is below 1, the task weight is negative, or it is positive but the task is
        not to collect items
    """

    def __init__(
        self,
        params: GridLifeParams,
        width: int = 32,
        depth: int = 14,
        task_weight: float = 0.0,
        viability: ViabilitySet | None = None,
    ) -> None:
        if width < 1 or depth < 1:
            raise ValueError(f"the planner's width={width} and depth={depth} must be at least 1")
        if not task_weight >= 0.0:
            raise ValueError(f"the planner's task_weight={task_weight} must not be negative")
        if task_weight and params.task != "items":
            raise ValueError(f"the planner can only collect items, and the task is {params.task!r}: use task_weight=0")
        self.params = params
        self.width = width
        self.depth = depth
        self.task_weight = task_weight
        low, high, _, _ = limits(viability or make_viability(CONSTRAINTS, SETPOINT), params)
        # No variable can pass 0 or 1, so these are no limits.
        self._low = np.where(low > 0.0, low, -np.inf)[:, None, None]
        self._high = np.where(high < 1.0, high, np.inf)[:, None, None]
        row, col = np.divmod(np.arange(params.size**2), params.size)
        self._distance = np.abs(row[:, None] - row) + np.abs(col[:, None] - col)

    def plan(self, snapshot: Snapshot) -> Ints:
        """
        :param snapshot: of ``n`` worlds, or of one
        :return: the first action of the best plan in each, ``(n,)``; ``n`` is 1 for one world
        :raises ValueError: if its worlds have other parameters
        """
        worlds = self._batch(snapshot)
        season = first_spell(self.params, worlds.layout_seed)
        foresight = Foresight(self.params, worlds.heat, worlds.hazard, worlds.places, season)
        gone = ((worlds.due > 0) << np.arange(self.params.slots)).sum(axis=1, dtype=np.int64)
        answer, _ = self._search(foresight, worlds.places, worlds.cell, worlds.internal.T, gone, worlds.step)
        return answer

    def safe_actions(self, snapshot: Snapshot) -> Bools:
        """
        The actions after which a way to go on is found that stays inside the limits for ``depth`` steps, and from whose
        end the energy reaches the nearest food. Nobody slips in it, so this is no promise; and a beam may miss a way.

        :param snapshot: of ``n`` worlds, or of one
        :return: ``(n, 5)``; ``n`` is 1 for one world
        :raises ValueError: if its worlds have other parameters
        """
        worlds = self._batch(snapshot)
        n, branches = len(worlds), len(ACTIONS)
        gone = ((worlds.due > 0) << np.arange(self.params.slots)).sum(axis=1, dtype=np.int64)
        # The actions of a world become worlds of their own, one step later.
        season = first_spell(self.params, worlds.layout_seed)
        once = Foresight(self.params, worlds.heat, worlds.hazard, worlds.places, season).step(
            worlds.cell[:, None], worlds.internal.T[:, :, None], gone[:, None], worlds.step[:, None] + 1
        )
        internal = once.internal.reshape(len(once.internal), -1)
        inside = self._margin(internal[:, :, None]).min(axis=0)[:, 0] >= 0.0
        row = np.repeat(np.arange(n), branches)[inside]
        safe = np.zeros(n * branches, dtype=bool)
        if len(row):
            foresight = Foresight(self.params, worlds.heat[row], worlds.hazard[row], worlds.places[row], season[row])
            _, safe[inside] = self._search(
                foresight,
                worlds.places[row],
                once.cell.ravel()[inside],
                internal[:, inside],
                once.gone.ravel()[inside],
                worlds.step[row] + 1,
            )
        return safe.reshape(n, branches)

    def _batch(self, snapshot: Snapshot) -> Snapshot:
        snapshot.require(self.params)
        return snapshot if snapshot.cell.ndim else snapshot[None]

    def _margin(self, internal: Floats) -> Floats:
        """How far inside its nearer limit each variable is, ``(3, n, k)``."""
        margin: Floats = np.minimum(internal - self._low, self._high - internal)
        return margin

    def _search(
        self, foresight: Foresight, places: Ints, cell: Ints, internal: Floats, gone: Ints, step: Ints
    ) -> tuple[Ints, Bools]:
        """
        :param foresight: what becomes of ``n`` worlds
        :param places: tiles of their food and items, ``(n, food + items)``
        :param cell: the agent's tiles, ``(n,)``
        :param internal: internal variables, ``(3, n)``
        :param gone: slots whose food or item is not there, as bits, ``(n,)``
        :param step: steps of the episodes so far, ``(n,)``
        :return: the first action of the best plan, ``(n,)``; and whether a plan stays inside, and has the energy for
            the way from its end to the nearest food, ``(n,)``
        """
        n, branches = len(cell), len(ACTIONS)
        to_food = self._distance[places[:, : self.params.food].T]
        cell, internal, gone = cell[:, None], internal[:, :, None], gone[:, None]
        score = np.zeros((n, 1))
        first = np.tile(np.arange(branches), (n, 1))
        answer = np.zeros(n, dtype=np.int64)
        hopeful = np.zeros(n, dtype=bool)
        for depth in range(self.depth):
            future = foresight.step(cell, internal, gone, step[:, None] + depth + 1)
            margin = self._margin(future.internal)
            inside = (margin >= 0.0).all(axis=0)
            way = self._nearest(to_food, future.cell, future.gone) * (self.params.energy_decay + self.params.move_cost)
            energy, temp, integrity = margin
            others = _log(temp) + _log(integrity)
            score = score.repeat(branches, axis=1) + _log(energy) + others
            score += self.task_weight * DISCOUNT**depth * future.collected
            value = np.where(inside, score + END_WEIGHT * (_log(energy - way) + others), -np.inf)
            if depth:
                first = first.repeat(branches, axis=1)
            if depth == self.depth - 1:
                hopeful = (np.isfinite(value) & (energy >= way)).any(axis=1)

            kept = self._best(value, future.cell)
            cell, gone, first, score, value = (
                np.take_along_axis(array, kept, axis=1) for array in (future.cell, future.gone, first, score, value)
            )
            internal = np.take_along_axis(future.internal, kept[None], axis=2)
            score[np.isneginf(value)] = -np.inf
            lives = np.isfinite(value[:, -1])
            answer[lives] = first[lives, -1]
        return answer, hopeful

    def _nearest(self, to_food: Ints, cell: Ints, gone: Ints) -> Ints:
        """Steps to the nearest food that is there, 0 where there is none, ``(n, k)``."""
        far = 2 * self.params.size
        nearest = np.full(cell.shape, far)
        for slot, distance in enumerate(to_food):
            steps = np.take_along_axis(distance, cell, axis=1)
            np.minimum(nearest, steps + far * (gone >> slot & 1), out=nearest)
        nearest[nearest == far] = 0
        return nearest

    def _best(self, value: Floats, cell: Ints) -> Ints:
        """The best path to each tile, and of these the best, in ascending order, ``(n, at most width)``."""
        order = value.argsort(axis=1)
        best_at = np.empty((len(value), self.params.size**2), dtype=np.int64)
        # Of what is written to one place the last remains, which is the best.
        np.put_along_axis(best_at, np.take_along_axis(cell, order, axis=1), order, axis=1)
        value[np.take_along_axis(best_at, cell, axis=1) != np.arange(value.shape[1])] = -np.inf
        return value.argsort(axis=1)[:, -self.width :]


def _log(margin: Floats) -> Floats:
    return np.log(np.clip(margin, LEAST, GREATEST))


class OraclePolicy:
    """
    The planner in the place of a model: it acts by the worlds themselves, and does not look at observations.

    :param planner: plans
    :param snapshot: gives the worlds as they are, such as the method ``snapshot`` of GridLife's environments
    """

    def __init__(self, planner: BeamPlanner, snapshot: Callable[[], Snapshot]) -> None:
        self.planner = planner
        self.snapshot = snapshot

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Ints, Any]:
        """
        :param observation: not looked at
        :param state: given back as it is
        :param episode_start: not looked at
        :param deterministic: plans always are
        :return: actions, ``(n,)``, and the state
        """
        return self.planner.plan(self.snapshot()), state
