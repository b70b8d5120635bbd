"""Other internal variables in the place of those that were, against the true dynamics and closed forms."""

import pickle
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from persist_sb3 import buffers
from persist_sb3.batch import tree_map
from persist_sb3.buffers import CounterfactualDictReplayBuffer, CounterfactualReplayBuffer
from persist_sb3.callbacks import BehaviourCloningCallback, LagrangeCallback, MetricsCallback
from persist_sb3.counterfactuals import Counterfactuals, least_deviations
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.models.spec import StateSpec
from persist_sb3.recording import record
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import (
    VecCostPenalty,
    VecHomeostatReward,
    VecInternalState,
    VecPartialObservation,
    VecRandomSetpoint,
)
from tests.learners import make_model
from tests.test_replay_buffers import Shield
from tests.toys import Walker, Wall

SHOWN = {"battery": "obs[0]", "heat": "obs[1]"}
IN_DICT = {"battery": "obs.sight[0][0]", "heat": "obs.sight[0][1]"}
HIDDEN = {"battery": "obs[0]", "heat": "info.internal[1]"}
LIMITS: dict[str, Any] = {"constraints": ["battery >= 0.2"], "mu": [0.8, 0.5], "low": [-0.5, 0.0], "high": [1.0, 1.0]}
HOMEOSTAT: dict[str, Any] = {"alive_bonus": 0.5, "death_penalty": 3.0}


class Plain(Walker):
    """A walker that shows its battery once."""

    def observe(self) -> Any:
        shown = super().observe()
        shown["sight"][1, 1] = 0.0
        return shown


class PlainBox(Plain):
    def observe(self) -> Any:
        return Walker.observe(self) * np.array([1.0, 1.0, 1.0, 0.0], dtype=np.float32)


def walkers(observation: str = "box", action: str = "box", horizon: int = 12, **kwargs: Any) -> VecEnv:
    kind = PlainBox if observation == "box" else Plain
    env: VecEnv = DummyVecEnv([partial(kind, observation, action, horizon)] * 3)
    sources = IN_DICT if observation == "dict" else SHOWN
    return VecInternalState(env, **{"dims": list(sources), "sources": sources} | LIMITS | kwargs)


def train(env: VecEnv, *callbacks: Any, steps: int = 900, algorithm: Any = SAC, **kwargs: Any) -> Any:
    nested = isinstance(env.observation_space, spaces.Dict)
    kind = CounterfactualDictReplayBuffer if nested else CounterfactualReplayBuffer
    model: Any = make_model(
        env, algorithm, replay_buffer_class=kind, replay_buffer_kwargs=kwargs, learning_starts=10_000, buffer_size=2000
    )
    return model.learn(steps, callback=[*(callbacks or [MetricsCallback()])])


def everything(buffer: Any) -> tuple[np.ndarray, np.ndarray]:
    rows, slots = np.divmod(np.arange(buffer.size() * buffer.n_envs), buffer.n_envs)
    return rows, slots


def test_the_true_gridlife_agrees() -> None:
    """In the very world of a step, chance included, other internal variables lead to where they are said to lead."""
    venv = GridLifeVecEnv(64, split="train", continuous=True, radius=1, horizon=100)
    spec = StateSpec(venv.observation_space, venv.action_space, venv.viability)
    worlds = Counterfactuals(spec, venv.internal_entries)
    rng = np.random.default_rng(0)
    venv.seed(0)
    observation: Any = venv.reset()
    said, truth, seen = [], [], []
    action = np.zeros((64, 2), dtype=np.float32)
    for time in range(400):
        action = np.where(rng.random((64, 1)) < 0.3, rng.uniform(-1.0, 1.0, (64, 2)), action).astype(np.float32)
        before = venv.snapshot()
        following, _, _, infos = venv.step(action)
        x_next = np.array([info["internal"] for info in infos])
        if time < 300:
            seen.append((observation, action, worlds.write(observation, x_next)))
        else:
            if time == 300:
                worlds.learn(*tree_map(lambda *leaves: np.concatenate(leaves[::10]), *seen), seen=1920)
            now = venv.snapshot()
            other = worlds.redraw(before.internal, rng.random((2, 64, 3)))
            venv.restore(replace(before, internal=other))
            truth.append([info["internal"] for info in venv.step(action)[3]])
            said.append(worlds.successor(before.internal, x_next, other))
            venv.restore(now)
        observation = following
    ours, theirs = np.concatenate(said), np.concatenate(truth)
    # Who is full gains nothing by food, which is not linear.
    assert np.quantile(np.abs(ours - theirs), 0.95, axis=0).max() < 1e-3
    dies = ~venv.viability.contains(theirs)
    assert 0.01 < dies.mean() < 0.1
    assert (dies == ~venv.viability.contains(ours)).mean() > 0.998


def test_the_jacobian_is_that_of_a_linear_world() -> None:
    """A mass: the velocity moves it by ``dt`` times itself, and nothing moves the velocity but a force."""
    rng, dt = np.random.default_rng(0), 0.1
    env = Wall(dt)
    limits = ViabilitySet(["position <= 1"], ("position", "velocity"), low=[-9.0, -9.0], high=[9.0, 9.0])
    worlds = Counterfactuals(
        StateSpec(env.observation_space, env.action_space, limits), {"position": "obs[0]", "velocity": "obs[1]"}
    )
    np.testing.assert_array_equal(worlds.jacobian, np.eye(2))
    x, other = rng.uniform(-1.0, 1.0, (2, 400, 2))
    action = rng.uniform(-1.0, 1.0, (400, 1)).astype(np.float32)

    def follow(x: Any) -> Any:
        position, velocity = x.T
        return np.stack([position + dt * velocity + dt**2 / 2 * action[:, 0], velocity + dt * action[:, 0]], axis=1)

    worlds.learn(x.astype(np.float32), action, follow(x).astype(np.float32), seen=400)
    np.testing.assert_allclose(worlds.jacobian, [[1.0, 0.0], [dt, 1.0]], atol=1e-4)
    np.testing.assert_allclose(worlds.successor(x, follow(x), other), follow(other), atol=1e-3)


def test_what_comes_with_a_variable_is_not_its_effect() -> None:
    """Where it is hot the agent drains, and is warm: its warmth is not what drains it."""
    rng = np.random.default_rng(0)
    space = spaces.Box(-9.0, 9.0, (3,), dtype=np.float32)
    limits = ViabilitySet(["battery >= 0.2"], ("battery", "heat"), high=[1.0, 1.0])
    worlds = Counterfactuals(StateSpec(space, spaces.Discrete(2), limits), SHOWN)
    place = rng.uniform(0.0, 1.0, 2000)
    x = np.stack([rng.uniform(0.3, 1.0, 2000), 0.9 * place + rng.uniform(0.0, 0.1, 2000)], axis=1)
    observation = np.column_stack([x, place]).astype(np.float32)
    x_next = np.stack([x[:, 0] - 0.05 * place, x[:, 1] + 0.1 * (place - x[:, 1])], axis=1)
    action = np.eye(2, dtype=np.float32)[rng.integers(2, size=2000)]
    worlds.learn(observation, action, worlds.write(observation, x_next), seen=2000)
    np.testing.assert_allclose(worlds.jacobian, [[1.0, 0.0], [0.0, 0.9]], atol=2e-3)


def test_hunger_is_not_what_feeds() -> None:
    """Who is hungry goes where the food is, and eats; that energy rises where it is low is not what energy does."""
    rng = np.random.default_rng(0)
    space = spaces.Box(-9.0, 9.0, (2,), dtype=np.float32)
    limits = ViabilitySet(["energy >= 0.2"], ("energy",), high=[1.0])
    worlds = Counterfactuals(StateSpec(space, spaces.Discrete(2), limits), {"energy": "obs[0]"})
    energy, near = rng.uniform(0.2, 1.0, 4000), rng.integers(2, size=4000)
    goes = near & (energy + rng.normal(0.0, 0.1, 4000) < 0.5)
    change = np.where(goes, 0.3, -0.01)
    observation = np.stack([energy, near], axis=1).astype(np.float32)
    # What the agent sees afterwards does not tell what it ate, and that both were needed is not linear.
    after = worlds.write(observation, (energy + change)[:, None])
    worlds.learn(observation, np.eye(2, dtype=np.float32)[goes], after, seen=4000)
    np.testing.assert_allclose(worlds.jacobian, [[1.0]], atol=1e-3)
    plain = np.linalg.lstsq(np.column_stack([energy, near, np.ones(4000)]), change, rcond=None)[0]
    assert plain[0] < -0.2


def test_what_never_changes_has_no_slope() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    slopes = least_deviations(np.column_stack([x, np.ones(50)]), np.column_stack([np.full(50, 0.3), x[:, 0]]))
    np.testing.assert_allclose(slopes, [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]], atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_least_absolute_deviations_are_those_of_a_linear_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, p = 80, 3
    x = rng.normal(size=(n, p))
    y = x @ [1.0, -2.0, 0.5] + 0.3 + rng.standard_t(2, size=n)
    slopes = least_deviations(x, y[:, None])[:, 0]
    given = np.column_stack([x, np.ones(n)])
    program = linprog(
        np.concatenate([np.zeros(p + 1), np.ones(2 * n)]),
        A_eq=np.hstack([given, np.eye(n), -np.eye(n)]),
        b_eq=y,
        bounds=[(None, None)] * (p + 1) + [(0, None)] * (2 * n),
    )
    intercept = np.median(y - x @ slopes)
    assert np.abs(y - x @ slopes - intercept).sum() <= 1.005 * program.fun


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), coupled=st.booleans())
def test_variables_are_drawn_inside_the_limits(seed: int, coupled: bool) -> None:
    rng = np.random.default_rng(seed)
    constraints = ["a >= 0.2", "b in [0.3, 0.7]", *(["a + b <= 1.2"] if coupled else [])]
    limits = ViabilitySet(constraints, ("a", "b", "c"), high=[1.0, np.inf, np.inf])
    space = spaces.Box(-9.0, 9.0, (3,), dtype=np.float32)
    entries = {name: f"obs[{index}]" for index, name in enumerate("abc")}
    worlds = Counterfactuals(StateSpec(space, spaces.Discrete(2), limits), entries)
    x = rng.uniform([0.2, 0.3, -5.0], [0.5, 0.7, 5.0], (500, 3))
    draws = rng.random((2, 500, 3))
    other = worlds.redraw(x, draws)
    assert limits.contains(other).all()
    assert x[:, 2].min() <= other[:, 2].min() <= other[:, 2].max() <= x[:, 2].max()
    changed = other != x
    if coupled:
        return
    # Each by itself, half of the time, anywhere between its limits.
    np.testing.assert_array_equal(changed, draws[0] < 0.5)
    below, above = np.array([0.2, 0.3]), np.array([1.0, 0.7])
    np.testing.assert_allclose(
        ((other[:, :2] - below) / (above - below))[changed[:, :2]], draws[1][:, :2][changed[:, :2]]
    )


@pytest.mark.parametrize(("observation", "weight"), [("box", 0.7), ("dict", 0.7), ("box", None)])
def test_a_batch_is_what_would_have_been(observation: str, weight: float | None) -> None:
    """Walkers drain by their effort alone, so that any battery would have lost what theirs did."""
    env = walkers(observation)
    if weight is not None:
        env = VecHomeostatReward(env, weight=weight, **HOMEOSTAT)
    model = train(env, counterfactual_share=0.5)
    buffer = model.replay_buffer
    rows, slots = everything(buffer)
    half = len(rows) // 2
    np.random.seed(3)  # noqa: NPY002
    drawn = buffer._drawn(rows, slots)
    shown = (lambda batch: batch["sight"][:, 0]) if observation == "dict" else (lambda batch: batch[:, :2])
    kept = (lambda leaves: leaves["sight"]) if observation == "dict" else (lambda leaves: leaves)
    was, became = kept(buffer.observations)[rows, slots], kept(buffer.next_observations)[rows, slots]
    x, x_next = (leaf.reshape(len(rows), -1)[:, :2].astype(np.float64) for leaf in (was, became))
    other, other_next = (shown(batch).astype(np.float64) for batch in (drawn.observation, drawn.next_observation))
    np.testing.assert_allclose(other[half:], x[half:])
    assert 0.7 < (other[:half] != x[:half]).any(axis=1).mean() < 0.8
    np.testing.assert_allclose((other_next - other)[:half, 0], (x_next - x)[:half, 0], atol=1e-2)
    # Nothing else has changed.
    again = kept(drawn.next_observation).reshape(len(rows), -1)
    np.testing.assert_array_equal(again[:, 2:], became.reshape(len(rows), -1)[:, 2:])
    dies = other_next[:, 0] < 0.2
    assert dies[:half].sum() >= 8
    np.testing.assert_array_equal(drawn.over > 0.0, dies)
    effort = np.abs(buffer.actions[rows, slots]).sum(axis=1)
    expected = effort
    if weight is not None:
        distance = np.square(other_next - [0.8, 0.5]).sum(axis=1)
        expected = effort + weight * (np.where(dies, -3.0, 0.5) - distance)
    np.testing.assert_allclose(drawn.reward, expected, atol=1e-4)


def test_of_other_internal_variables_the_executed_action_is_told() -> None:
    """Nobody knows what a shield would have made of the proposal then, and nobody pays for it."""
    env = Shield(walkers())
    buffer = train(env, learn_from="both", intervention_penalty=2.5).replay_buffer
    rows, slots = everything(buffer)
    np.random.seed(3)  # noqa: NPY002
    slots = np.random.randint(0, high=buffer.n_envs, size=len(rows))  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    batch = buffer._get_samples(rows)
    half = len(rows) // 2
    executed, proposed, intervened = np.split(buffer.actions[rows, slots], [2, 4], axis=1)
    action, reward = batch.actions.numpy(), batch.rewards.numpy()[:, 0]
    effort = buffer.rewards[rows, slots]
    np.testing.assert_array_equal(action[:half], executed[:half])
    np.testing.assert_allclose(reward[:half], effort[:half])
    pays = reward[half:] < effort[half:] - 1.0
    assert 0.1 < pays.mean() < 0.4
    assert intervened[half:][pays].all()
    np.testing.assert_array_equal(action[half:][pays], proposed[half:][pays])
    np.testing.assert_array_equal(action[half:][~pays], executed[half:][~pays])
    # Walkers drain by what they did, and not by what was proposed.
    np.testing.assert_allclose(buffer._worlds.jacobian, np.eye(2), atol=0.1)
    assert not np.array_equal(buffer._worlds.jacobian, np.eye(2))


def test_safe_demonstrations_tell_of_deaths() -> None:
    """Nobody dies in them, and some steps of a batch end a life."""
    env = VecHomeostatReward(walkers(horizon=6), **HOMEOSTAT)
    shown = record(make_model(env, SAC), env, episodes=60, seed=0)
    assert not shown.transitions.terminated.any()
    model: Any = make_model(
        env,
        SAC,
        replay_buffer_class=CounterfactualReplayBuffer,
        replay_buffer_kwargs={"counterfactual_share": 1.0},
        buffer_size=1000,
        learning_starts=10_000,
    )
    # By itself this callback binds the buffer before it fills it.
    model.learn(3, callback=BehaviourCloningCallback(shown, gradient_steps=1))
    drawn = model.replay_buffer._drawn(*everything(model.replay_buffer))
    np.testing.assert_array_equal(drawn.over > 0.0, drawn.next_observation[:, 0] < 0.2)
    assert drawn.over.sum() >= 3.0


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_without_a_share_a_batch_is_that_of_the_other_buffer(observation: str) -> None:
    samples = []
    for kind in ("Counterfactual", "ExecutedAction"):
        env = VecNormalize(walkers(observation), norm_obs_keys=["sight"] if observation == "dict" else None)
        name = f"{kind}{'Dict' if observation == 'dict' else ''}ReplayBuffer"
        kwargs = {"counterfactual_share": 0.0} if kind == "Counterfactual" else {}
        model: Any = make_model(
            env,
            SAC,
            replay_buffer_class=getattr(buffers, name),
            replay_buffer_kwargs=kwargs,
            learning_starts=10_000,
        )
        model.learn(200, callback=MetricsCallback())
        np.random.seed(7)  # noqa: NPY002
        samples.append(tuple(model.replay_buffer.sample(32, env)))
    torch.testing.assert_close(*samples, rtol=0.0, atol=0.0)


def test_the_same_seed_gives_the_same_batch() -> None:
    model = train(walkers(), steps=300)
    # Now it has learned what it can.
    model.replay_buffer.sample(8)
    batches = []
    for _ in range(2):
        np.random.seed(5)  # noqa: NPY002
        batches.append(model.replay_buffer.sample(64))
    torch.testing.assert_close(*map(tuple, batches), rtol=0.0, atol=0.0)


def test_actions_without_units_are_understood() -> None:
    buffer = train(walkers("dict", "discrete"), algorithm=DQN).replay_buffer
    drawn = buffer._drawn(*everything(buffer))
    assert not np.array_equal(buffer._worlds.jacobian, np.eye(2))
    np.testing.assert_allclose(buffer._worlds.jacobian, np.eye(2), atol=0.1)
    np.testing.assert_array_equal(drawn.over > 0.0, drawn.next_observation["sight"][:, 0, 0] < 0.2)


def test_a_saved_buffer_goes_on_with_what_it_learned() -> None:
    model = train(walkers())
    model.replay_buffer.sample(8)
    jacobian = model.replay_buffer._worlds.jacobian
    assert not np.array_equal(jacobian, np.eye(2))
    model.replay_buffer = pickle.loads(pickle.dumps(model.replay_buffer))
    with pytest.raises(RuntimeError, match="no callback has bound it"):
        model.replay_buffer.sample(8)
    model.learn(3, callback=MetricsCallback(), reset_num_timesteps=False)
    again = model.replay_buffer._worlds.jacobian
    assert not np.array_equal(again, np.eye(2))
    np.testing.assert_array_equal(again, jacobian)


@pytest.mark.parametrize("told", [{"violations_terminate": False}, {}], ids=["told", "seen"])
def test_life_goes_on_where_violations_do_not_end_it(told: dict[str, bool]) -> None:
    limits: dict[str, Any] = {"constraints": ["battery >= 0.5"]}
    buffer = train(walkers(**limits), **told).replay_buffer
    drawn = buffer._drawn(*everything(buffer))
    violates = drawn.next_observation[:, 0] < 0.5
    rows, slots = everything(buffer)
    np.testing.assert_array_equal(drawn.over, buffer.dones[rows, slots] * (1.0 - buffer.timeouts[rows, slots]))
    assert violates.sum() > drawn.over.sum()
    with pytest.raises(RuntimeError, match=r"its episode goes on.*TerminateOnViolation"):
        train(walkers(**limits), violations_terminate=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"counterfactual_share": 1.5}, "counterfactual_share=1.5 must be in"),
        ({"learn_from": "proposed"}, "learn_from='proposed' tells of every step what became of the proposal"),
        ({"optimize_memory_usage": True, "handle_timeout_termination": False}, "optimize_memory_usage"),
    ],
)
def test_wrong_parameters_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        train(walkers(), **kwargs)


@pytest.mark.parametrize(
    ("make", "callbacks", "message"),
    [
        (lambda: walkers(sources=HIDDEN), [], "does not show heat"),
        (lambda: VecPartialObservation(walkers(), noise={"heat": 0.1}), [], "does not always show heat"),
        (lambda: VecCostPenalty(walkers(), weight=1.0), [], "not what CostPenalty takes"),
        (lambda: VecRandomSetpoint(walkers(), ranges={"heat": [0.4, 0.6]}), [], "RandomSetpoint changes that"),
        (lambda: VecCostPenalty(walkers()), [LagrangeCallback(0.1)], "LagrangeCallback changes that"),
    ],
)
def test_what_would_be_told_wrongly_is_refused(make: Any, callbacks: list[Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        train(make(), *callbacks, MetricsCallback())


def test_an_observation_of_whole_numbers_is_refused() -> None:
    space = spaces.Dict({"level": spaces.Discrete(5)})
    limits = ViabilitySet(["level >= 1"], ("level",), high=[4.0])
    with pytest.raises(ValueError, match="does not hold every number"):
        Counterfactuals(StateSpec(space, spaces.Discrete(2), limits), {"level": "obs.level"})


def test_what_is_shown_twice_is_refused() -> None:
    env = VecInternalState(DummyVecEnv([partial(Walker, "box", "box")] * 3), dims=list(SHOWN), sources=SHOWN, **LIMITS)
    model = train(env, steps=300)
    with pytest.raises(RuntimeError, match=r"shows battery in obs\[0\] and follows it elsewhere"):
        model.replay_buffer.sample(8)
