"""The beam planner: it foresees what happens, peeks at nothing else, and stays alive."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from persist_sb3.envs.batch import GridLifeCore
from persist_sb3.envs.dynamics import ACTIONS, GridLifeParams
from persist_sb3.envs.layout import SPLITS
from persist_sb3.envs.oracle import BeamPlanner, ExactViability, OraclePolicy
from persist_sb3.envs.oracle.model import Foresight
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.metrics import kaplan_meier

PARAMS = GridLifeParams()


def worlds(n: int, params: GridLifeParams = PARAMS, seed: int = 0) -> GridLifeCore:
    core = GridLifeCore(n, params, layouts=SPLITS["test"])
    core.seed(np.arange(seed, seed + n))
    core.begin()
    return core


def play(core: GridLifeCore, choose: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Length, whether it ended in death, and return of the first episode in each world."""
    n = core.num_envs
    length, dead, total = np.zeros(n), np.zeros(n, dtype=bool), np.zeros(n)
    going = np.arange(n)
    while len(going):
        actions = np.zeros(n, dtype=np.int64)
        actions[going] = choose(core.snapshot()[going])
        _, reward, terminated, truncated = core.step(actions)
        length[going] += 1
        total[going] += reward[going]
        dead[going] = terminated[going] == 1
        going = going[(terminated[going] == 0) & (truncated[going] == 0)]
    return length, dead, total


def at_random(snapshot: Snapshot) -> NDArray[np.int64]:
    return np.random.default_rng(int(snapshot.step[0])).integers(0, len(ACTIONS), len(snapshot))


def scattered(n: int, seed: int, params: GridLifeParams) -> Snapshot:
    """Worlds in any state, viable or not, and with any of the food and items there."""
    rng = np.random.default_rng(seed)
    core = GridLifeCore(n, params)
    core.seed(range(n))
    core.begin()
    begun = core.snapshot()
    changed = replace(
        begun,
        cell=rng.integers(0, params.size**2, n),
        internal=rng.uniform(size=(n, 3)),
        due=np.where(rng.uniform(size=begun.due.shape) < 0.5, 0, 400),
    )
    core.restore(changed)
    return core.snapshot()


def test_what_it_foresees_happens() -> None:
    params = replace(PARAMS, slip=0.0)
    n = 400
    before = scattered(n, 1, params)
    gone = ((before.due > 0) << np.arange(params.slots)).sum(axis=1)
    foresight = Foresight(params, before.heat, before.hazard, before.places)
    future = foresight.step(before.cell[:, None], before.internal.T[:, :, None], gone[:, None])
    for action in range(len(ACTIONS)):
        core = GridLifeCore(n, params, same_step=False)
        core.restore(before)
        _, reward, _, _ = core.step(np.full(n, action))
        after = core.snapshot()
        np.testing.assert_array_equal(future.cell[:, action], after.cell)
        np.testing.assert_array_equal(future.internal[:, :, action].T, after.internal)
        np.testing.assert_array_equal(future.gone[:, action], ((after.due > 0) << np.arange(params.slots)).sum(axis=1))
        np.testing.assert_array_equal(future.collected[:, action], reward == 1.0)


def test_it_does_not_peek_at_chance() -> None:
    core = worlds(30)
    for _ in range(40):
        core.step(BeamPlanner(PARAMS, width=4, depth=4).plan(core.snapshot()))
    before = core.snapshot()
    core.redraw_chance(range(100, 130))
    after = core.snapshot()
    assert (before.next_slip != after.next_slip).any()
    assert (before.due != after.due).any()
    planner = BeamPlanner(PARAMS, task_weight=3.0)
    np.testing.assert_array_equal(planner.plan(before), planner.plan(after))


def test_a_plan_does_not_depend_on_the_other_worlds() -> None:
    snapshot = scattered(20, 2, PARAMS)
    planner = BeamPlanner(PARAMS, width=8, depth=6)
    together = planner.plan(snapshot)
    np.testing.assert_array_equal(together, [planner.plan(snapshot[i])[0] for i in range(20)])
    np.testing.assert_array_equal(together[3:9], planner.plan(snapshot[3:9]))


def test_where_all_paths_die_it_takes_one_that_lasts_longest() -> None:
    """There is no food, and energy for three steps on the spot, but only for two if one of them is a move."""
    nothing: dict[str, Any] = {"hazards": 0, "food": 0, "ringed_food": 0, "items": 0, "hot_spots": 0, "cold_spots": 0}
    params = GridLifeParams(size=3, slip=0.0, energy_decay=0.1, move_cost=0.1, **nothing)
    core = worlds(1, params)
    core.restore(replace(core.snapshot(), internal=np.array([[0.55, 0.5, 0.9]])))
    length, dead, _ = play(core, BeamPlanner(params).plan)
    assert dead
    assert length == 4


def test_it_stays_alive() -> None:
    length, dead, _ = play(worlds(16), BeamPlanner(PARAMS).plan)
    assert dead.sum() <= 1
    assert (length[~dead] == PARAMS.horizon).all()


def test_it_collects_items_if_asked_to() -> None:
    _, dead, total = play(worlds(8), BeamPlanner(PARAMS, width=16, depth=10, task_weight=3.0).plan)
    _, _, by_the_way = play(worlds(8), BeamPlanner(PARAMS, width=16, depth=10).plan)
    assert dead.sum() <= 1
    assert total.mean() > 25.0 > 15.0 > by_the_way.mean()


def test_it_survives_where_that_is_possible() -> None:
    """From states that are exactly known to be viable, of which many are close to the edge."""
    params = GridLifeParams(
        size=4, horizon=200, hazards=3, food=1, ringed_food=0, items=0, hot_spots=1, cold_spots=1, spot_distance=2.0,
        slip=0.0, food_regrowth=1.0, energy_decay=0.02, move_cost=0.02, repair=0.02,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    exact = ExactViability(params, layout_seed=1)
    cell = rng.integers(0, 16, 300)
    x = rng.uniform([0.2, 0.3, 0.6], [1.0, 0.7, 1.0], (300, 3))
    viable = exact.contains(cell, x)
    assert 100 < viable.sum() < 295
    core = GridLifeCore(int(viable.sum()), params)
    core.restore(exact.worlds(cell[viable], x[viable]))
    _, dead, _ = play(core, BeamPlanner(params, width=16).plan)
    assert dead.mean() <= 0.02


def test_it_stands_in_for_a_model() -> None:
    env = gym.make("GridLife-v0")
    observation, _ = env.reset(seed=3)
    planner = BeamPlanner(PARAMS, width=8, depth=8)
    policy = OraclePolicy(planner, env.get_wrapper_attr("snapshot"))
    for _ in range(20):
        expected = planner.plan(env.get_wrapper_attr("snapshot")())
        actions, state = policy.predict(observation, state=("kept",))
        assert state == ("kept",)
        np.testing.assert_array_equal(actions, expected)
        observation, _, terminated, _, _ = env.step(actions[0])
        assert not terminated


@pytest.mark.parametrize(
    ("params", "keywords", "message"),
    [
        (PARAMS, {"width": 0}, "width=0"),
        (PARAMS, {"depth": 0}, "depth=0"),
        (PARAMS, {"task_weight": -1.0}, "task_weight=-1.0 must not be negative"),
        (PARAMS, {"task_weight": float("nan")}, "task_weight=nan"),
        (GridLifeParams(task="explore", items=0), {"task_weight": 1.0}, "the task is 'explore'"),
    ],
)
def test_what_it_refuses(params: GridLifeParams, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BeamPlanner(params, **keywords)


def test_worlds_of_other_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="the snapshot is of a world with"):
        BeamPlanner(replace(PARAMS, slip=0.5)).plan(worlds(1).snapshot())


@pytest.mark.slow
def test_it_survives_nearly_always_and_random_actions_hardly_at_all() -> None:
    length, dead, _ = play(worlds(200), BeamPlanner(PARAMS).plan)
    assert (~dead).mean() >= 0.98
    length, dead, _ = play(worlds(200), at_random)
    assert kaplan_meier(length, dead).median < 110
