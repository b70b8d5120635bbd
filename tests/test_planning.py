"""Plans against brute force, closed forms and GridLife's own worlds."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.draws import Noise
from persist_sb3.envs.batch import GridLifeCore
from persist_sb3.envs.oracle import FullView
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.planning import END_WEIGHT, LEAST, Plan, Planning
from persist_sb3.streams import Streams
from persist_sb3.viability import ViabilitySet
from tests.toys import Wall

NOWHERE = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)


def streams(n: int) -> Streams:
    made = Streams(n)
    made.seed(np.arange(n), np.arange(n, dtype=np.uint64))
    return made


def states(*internal: Any) -> Floats:
    """States whose observation says nothing, a row each."""
    rows = np.array(np.broadcast_arrays(*internal), dtype=np.float32).reshape(len(internal), -1).T
    return np.concatenate([np.zeros((len(rows), 1), dtype=np.float32), rows], axis=1)


# Two stocks of which each action fills one and the third neither. All drain; overflowing is as bad as running dry.
STOCKS = StateSpec(
    NOWHERE,
    spaces.Discrete(3),
    ViabilitySet(["food >= 1", "food <= 9", "heat in [1, 9]"], ["food", "heat"], mu=[5.0, 5.0]),
)


def trade(observation: Any, x: NDArray[Any], action: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
    gain = np.array([[2.0, -2.0], [-1.0, 3.0], [-1.0, -1.0]])
    return observation, x + gain[action]


def brute_force(x: NDArray[Any], horizon: int, target: float | None) -> tuple[bool, float, float]:
    """
    :return: whether a course is safe, the best one's worth, and of courses that are not the latest break
    """
    best, latest = -np.inf, 0.0
    for course in product(range(3), repeat=horizon):
        now, worth, reached, broken = x[None], 0.0, False, None
        for step, action in enumerate(course, 1):
            now = trade(None, now, np.array([action]))[1]
            margins = np.array([now[0, 0] - 1, 9 - now[0, 0], min(now[0, 1] - 1, 9 - now[0, 1])]) / 4.0
            if broken is None and margins.min() < 0.0:
                broken = step
            reached |= target is not None and now[0, 0] >= target and broken is None
            if target is None:
                worth += np.log(np.maximum(margins, LEAST)).sum()
            elif not reached:
                worth -= 1.0 + target - now[0, 0]
        if target is None:
            worth += END_WEIGHT * np.log(np.maximum(margins, LEAST)).sum()
        if broken is None:
            best = max(best, worth)
        latest = max(latest, np.inf if broken is None else broken)
    return bool(np.isfinite(best)), best, latest


@pytest.mark.parametrize("target", [None, 7.0])
def test_a_wide_beam_finds_what_brute_force_finds(target: float | None) -> None:
    horizon = 4
    x = np.array([[5.0, 5.0], [2.0, 5.0], [8.0, 2.0], [3.0, 3.0], [1.0, 1.0], [1.0, 2.0], [9.0, 9.0], [4.0, 8.0]])
    planning = Planning(
        None if target is None else [f"food >= {target:g}"], horizon=horizon, conf=1.0, rollouts=1, width=3**3
    )
    planner = planning.planner(STOCKS, {}, streams(len(x)), trade)
    plan = planner.plan(states(*x.T), np.arange(len(x)))
    for row, start in enumerate(x):
        feasible, worth, latest = brute_force(start, horizon, target)
        assert plan.feasible[row] == feasible
        if feasible:
            assert plan.score[row] == pytest.approx(worth, rel=1e-5)
            continue
        now, broken = start[None], 0
        for step, action in enumerate(plan.course[row].argmax(axis=1), 1):
            now = trade(None, now, np.array([action]))[1]
            broken = broken or step * bool((now < 1).any() or (now > 9).any())
        assert broken == latest
    assert 2 <= plan.feasible.sum() < len(x)


def test_a_plan_does_not_depend_on_who_else_is_planned_for() -> None:
    x = np.random.default_rng(0).uniform(2.0, 8.0, (6, 2))
    planner = Planning(rollouts=2, width=4).planner(STOCKS, {}, streams(6), trade)
    everyone = planner.plan(states(*x.T), np.arange(6))
    for row in range(6):
        alone = planner.plan(states(*x[row : row + 1].T), np.array([row]))
        np.testing.assert_array_equal(alone.course[0], everyone.course[row])
        assert alone.score[0] == everyone.score[row]


class Coin:
    """``food`` rises by 1 with probability ``up``, or falls by 1, if a coin is tossed (0); else by 0.1."""

    def __init__(self, up: float, members: int = 1) -> None:
        self.up, self.members = up, members

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        state = state.copy()
        uniform = np.full((len(state), 1), 0.5) if noise is None else noise.random((len(state), 1))
        tossed = np.where(uniform[:, 0] < self.up, 1.0, -1.0)
        state[:, 1] += np.where(action.argmax(axis=1) == 0, tossed, -0.1)
        return state


@pytest.mark.parametrize(("conf", "feasible"), [(0.5, True), (0.9, False)])
def test_a_share_of_the_futures_must_be_safe(conf: float, feasible: bool) -> None:
    # At the limit only tossing can help, and does so in 7 of 10 futures.
    plan = Planning(horizon=1, conf=conf, rollouts=400).planner(STOCKS, {}, streams(1), Coin(0.7))
    assert plan.plan(states([1.0], [5.0]), np.arange(1)).feasible[0] == feasible


def test_without_chance_the_likeliest_course_is_planned() -> None:
    planner = Planning(horizon=1, conf=1.0, rollouts=1, chance=False).planner(STOCKS, {}, streams(1), Coin(0.7))
    assert planner.plan(states([1.0], [5.0]), np.arange(1)).feasible[0]


def test_progress_decides_between_what_is_safe() -> None:
    def hot(observation: Any, x: NDArray[Any]) -> NDArray[Any]:
        return 100.0 * x[:, 1]

    for progress, action in ((hot, 1), (lambda o, x: -hot(o, x), 0)):
        planner = Planning(horizon=2, rollouts=1, progress=progress).planner(STOCKS, {}, streams(1), trade)
        assert planner.plan(states([5.0], [5.0]), np.arange(1)).action[0] == action
    # It never outweighs a limit: at 8 heat, action 1 would leave it.
    planner = Planning(horizon=1, rollouts=1, progress=hot).planner(STOCKS, {}, streams(1), trade)
    assert planner.plan(states([5.0], [8.0]), np.arange(1)).action[0] == 2


# GridLife


def test_plans_in_gridlife_against_its_own_worlds() -> None:
    n, horizon = 12, 4
    chanceless: dict[str, Any] = {"slip": 0.0, "food_regrowth": 0.0, "item_regrowth": 0.0}
    view = FullView(GridLifeVecEnv(n, split="test", energy_decay=0.08, food=12, ringed_food=4, **chanceless))
    view.seed(5)
    observation: Any = view.reset()
    rng = np.random.default_rng(0)
    params, viability = view.worlds.params, view.worlds.viability
    for _ in range(3):
        observation, *_ = view.step(rng.integers(0, 5, n))
    spec = StateSpec(view.observation_space, view.action_space, viability)
    planning = Planning(horizon=horizon, conf=1.0, rollouts=1, width=5**3)
    planner = planning.planner(spec, {}, streams(n), view.dynamics)
    plan = planner.plan(spec.encode(observation, view.worlds.get_internal()), np.arange(n))

    courses = np.array(list(product(range(5), repeat=horizon)))
    core = GridLifeCore(n * len(courses), params, same_step=False)
    core.begin()
    core.restore(view.worlds.snapshot()[np.repeat(np.arange(n), len(courses))])
    worth, safe = np.zeros(core.num_envs), np.ones(core.num_envs, dtype=bool)
    for step in range(horizon):
        _, _, terminated, _ = core.step(np.tile(courses[:, step], n))
        safe &= terminated == 0
        barrier = np.log(np.maximum(viability.margins(core.internal), LEAST)).sum(axis=1)
        worth += barrier * (1.0 if step < horizon - 1 else 1.0 + END_WEIGHT)
    worths = np.where(safe, worth, -np.inf).reshape(n, -1)
    feasible = safe.reshape(n, -1).any(axis=1)
    np.testing.assert_array_equal(plan.feasible, feasible)
    assert 0 < feasible.sum() < n
    np.testing.assert_allclose(plan.score[feasible], worths[feasible].max(axis=1), rtol=1e-4)


def test_the_full_view_foresees_what_happens() -> None:
    view = FullView(GridLifeVecEnv(20, slip=0.0, food_regrowth=0.0, item_regrowth=0.0))
    view.seed(1)
    observation: Any = view.reset()
    rng = np.random.default_rng(1)
    for _ in range(30):
        action = rng.integers(0, 5, 20)
        foreseen, x = view.dynamics(observation, view.worlds.get_internal(), action)
        observation, _, dones, infos = view.step(action)
        last = np.where(
            dones[:, None], [info.get("terminal_observation", observation[0]) for info in infos], observation
        )
        np.testing.assert_array_equal(foreseen, last)
        np.testing.assert_allclose(x, [info["internal"] for info in infos], atol=1e-12)


# The double integrator

WALL = StateSpec(
    NOWHERE,
    spaces.Box(-1.0, 1.0, (1,), dtype=np.float32),
    ViabilitySet(["position <= 1"], ["position", "velocity"], mu=[0.0, 0.0]),
)


def push(observation: Any, x: NDArray[Any], action: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
    dt, force = 0.1, action[:, 0]
    velocity = x[:, 1] + force * dt
    return observation, np.stack([x[:, 0] + x[:, 1] * dt + force * dt**2 / 2.0, velocity], axis=1)


class Kernel:
    """The value of a mass before a wall in closed form: how far before the wall it stops if it brakes at once."""

    def viability(self, state: Floats) -> Floats:
        return (1.0 - Wall.reach(state[:, 1:])).astype(np.float32)


def plan_at(planning: Planning, x: NDArray[Any], models: dict[str, Any]) -> Plan:
    planner = planning.planner(WALL, models, streams(len(x)), push)
    return planner.plan(states(*x.T), np.arange(len(x)))


@pytest.mark.parametrize(("horizon", "models"), [(16, {}), (2, {"viability": Kernel()})])
def test_feasible_is_what_lies_in_the_viability_kernel(horizon: int, models: dict[str, Any]) -> None:
    x = np.random.default_rng(0).uniform(Wall.LOW, Wall.HIGH, (120, 2))
    x = x[np.abs(Wall.reach(x) - 1.0) > 0.03]
    planning = Planning(horizon=horizon, threshold=0.0, rollouts=1, samples=48, rounds=5)
    plan = plan_at(planning, x, models)
    np.testing.assert_array_equal(plan.feasible, Wall.reach(x) <= 1.0)
    assert 0.1 < plan.feasible.mean() < 0.95


def test_the_target_is_reached_about_as_soon_as_it_can_be() -> None:
    # From rest, 0.5 away: with the greatest force that takes 10 steps of 0.1.
    planning = Planning(["position >= 0.4975"], horizon=12, rollouts=1, samples=96, rounds=8)
    plan = plan_at(planning, np.zeros((1, 2)), {})
    assert plan.feasible[0] and plan.reached[0] == 1.0
    x, steps = np.zeros((1, 2)), 0
    while x[0, 0] < 0.4975:
        x, steps = push(None, x, plan.course[0, steps : steps + 1])[1], steps + 1
    assert steps in (10, 11)


def test_a_target_behind_the_limit_is_not_reached() -> None:
    planning = Planning(["position >= 1.2"], horizon=12, rollouts=1)
    plan = plan_at(planning, np.array([[0.5, 0.0]]), {})
    assert plan.feasible[0] and plan.reached[0] == 0.0


def test_driven_step_by_step_it_gets_there_and_stops_in_time() -> None:
    planning = Planning(["position >= 0.8"], horizon=6, threshold=0.02, rollouts=1, samples=48, rounds=4)
    planner = planning.planner(WALL, {"viability": Kernel()}, streams(3), push)
    x = np.array([[-0.5, 0.0], [0.0, 0.8], [0.2, -0.5]])
    furthest = x[:, 0]
    for _ in range(60):
        plan = planner.plan(states(*x.T), np.arange(3))
        x = push(None, x, plan.action)[1]
        furthest = np.maximum(furthest, x[:, 0])
    assert (furthest >= 0.8).all() and (furthest <= 1.0).all()


# Dynamics that remember


class Glide:
    """A mass that glides on: its velocity, 0 at first, is changed by each push and seen nowhere in the state."""

    members = 1

    def __init__(self, spec: StateSpec, velocity: NDArray[Any] | None = None) -> None:
        self.spec = spec
        self.velocity = velocity

    def begin(self, state: Floats) -> "Glide":
        return Glide(self.spec, np.zeros(len(state), dtype=np.float32))

    def take(self, rows: NDArray[np.intp]) -> "Glide":
        assert self.velocity is not None
        return Glide(self.spec, self.velocity[rows])

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        push = action[:, 0] if self.spec.continuous else action.argmax(axis=1) - 1.0
        velocity = push if self.velocity is None else self.velocity + push
        if self.velocity is not None:
            self.velocity = velocity
        state = state.copy()
        state[:, 1] += velocity
        return state


CORRIDOR = ViabilitySet(["place in [0, 10]"], ["place"], mu=[5.0])
GLIDING = StateSpec(NOWHERE, spaces.Discrete(3), CORRIDOR)
STEERED = StateSpec(NOWHERE, spaces.Box(-1.0, 1.0, (1,), dtype=np.float32), CORRIDOR)


def glide(start: float, pushes: NDArray[Any]) -> tuple[bool, float]:
    """
    :return: whether a mass at rest, so pushed, stays in the corridor, and what its course is worth
    """
    places = start + np.cumsum(np.cumsum(pushes))
    margins = np.minimum(places, 10.0 - places) / 5.0
    barrier = np.log(np.maximum(margins, LEAST))
    return bool((margins >= 0.0).all()), float(barrier.sum() + END_WEIGHT * barrier[-1])


def test_a_plan_remembers_what_it_has_imagined() -> None:
    starts, horizon = np.array([1.0, 3.0, 5.0, 8.0, 10.5, 11.5]), 4
    planner = Planning(horizon=horizon, conf=1.0, rollouts=2, width=3**3).planner(
        GLIDING, {}, streams(len(starts)), Glide(GLIDING)
    )
    plan = planner.plan(states(starts), np.arange(len(starts)))
    for row, start in enumerate(starts):
        courses = [glide(start, np.array(course) - 1.0) for course in product(range(3), repeat=horizon)]
        safe = [worth for stays, worth in courses if stays]
        assert plan.feasible[row] == bool(safe)
        if safe:
            assert plan.score[row] == pytest.approx(max(safe), rel=1e-4)
            assert glide(start, plan.course[row].argmax(axis=1) - 1.0)[0]
    assert 0 < plan.feasible.sum() < len(starts)


def test_courses_of_box_actions_remember_too() -> None:
    starts = np.array([1.0, 4.0, 9.0])
    planner = Planning(horizon=5, conf=1.0, rollouts=2, samples=96).planner(STEERED, {}, streams(3), Glide(STEERED))
    plan = planner.plan(states(starts), np.arange(3))
    for row, start in enumerate(starts):
        stays, worth = glide(start, plan.course[row, :, 0])
        assert plan.feasible[row] and stays
        assert plan.score[row] == pytest.approx(worth, rel=1e-4)


# Parameters


@pytest.mark.parametrize(
    "wrong",
    [
        {"conf": 0.0},
        {"conf": 1.5},
        {"horizon": 0},
        {"rollouts": 0},
        {"width": 0},
        {"samples": 0},
        {"threshold": np.nan},
    ],
)
def test_parameters_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Planning(**wrong)


def test_what_it_cannot_plan_with() -> None:
    with pytest.raises(ValueError, match="world_model"):
        Planning().planner(STOCKS, {}, streams(1))
    with pytest.raises(ValueError, match="fodd"):
        Planning(["fodd >= 3"]).planner(STOCKS, {}, streams(1), trade)


def test_what_fails_everywhere_is_told_from_what_is_bad() -> None:
    def broken(observation: Any, x: NDArray[Any], action: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        return observation, np.full_like(x, np.nan)

    planner = Planning(rollouts=1).planner(STOCKS, {}, streams(1), broken)
    plan = planner.plan(states([5.0], [5.0]), np.arange(1))
    assert not plan.feasible[0] and np.isnan(plan.margin[0])
    dead = replace(Planning(rollouts=1), horizon=3).planner(STOCKS, {}, streams(1), trade)
    lost = dead.plan(states([-5.0], [5.0]), np.arange(1))
    assert not lost.feasible[0] and lost.margin[0] < 0.0
