"""A layer does the same in the three vector APIs, and shows what the environment really did."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from persist_sb3.batch import add_batch_axis, first_row, flatten, stack, take
from persist_sb3.wrappers import (
    HomeostatReward,
    InternalState,
    PartialObservation,
    VecHomeostatReward,
    VecInternalState,
    VecPartialObservation,
    VectorHomeostatReward,
    VectorInternalState,
    VectorPartialObservation,
)
from persist_sb3.wrappers.adapters import LayerWrapper, VecLayerWrapper, VectorLayerWrapper, lookup
from persist_sb3.wrappers.layer import Layer, Step
from tests.toys import ACTIONS, OBSERVATIONS, Walker

NUM_ENVS, STEPS, SEED = 3, 60, 7
INTERNAL = {
    "dims": ["battery", "heat"],
    "constraints": ["battery >= 0.2", "heat in [0, 1]"],
    "mu": [0.7, 0.5],
    "append": True,
}
PARTIAL = {"noise": {"battery": 0.05}, "delay": {"heat": 2}, "dropout": {"battery": 0.3}, "fill": "last"}
HOMEOSTAT = {"w": [1.0, 2.0], "alive_bonus": 0.3, "death_penalty": 1.0, "weight": 0.5}

# (observation, action, reward, next observation, ended) of one environment's successive transitions.
Trajectory = list[tuple[Any, Any, float, Any, bool]]


def wrap(env: Any, internal: Any, partial: Any, homeostat: Any) -> Any:
    return homeostat(partial(internal(env, **INTERNAL), **PARTIAL), **HOMEOSTAT)


def actions(space: gym.Space[Any]) -> list[list[Any]]:
    """The actions of each environment in order of its own transitions, so that no form's bookkeeping can shift them."""
    space.seed(0)
    return [[space.sample() for _ in range(STEPS)] for _ in range(NUM_ENVS)]


def run_sb3(venv: Any) -> list[Trajectory]:
    script = actions(venv.action_space)
    venv.seed(SEED)
    seen = venv.reset()
    trajectories: list[Trajectory] = [[] for _ in range(NUM_ENVS)]
    for t in range(STEPS):
        chosen = np.array([script[i][t] for i in range(NUM_ENVS)])
        following, rewards, dones, infos = venv.step(chosen)
        for i in range(NUM_ENVS):
            last = infos[i]["terminal_observation"] if dones[i] else first_row(take(following, np.array([i])))
            row = first_row(take(seen, np.array([i])))
            trajectories[i].append((row, chosen[i], float(rewards[i]), last, bool(dones[i])))
        seen = following
    venv.close()
    return trajectories


def run_vector(envs: Any) -> list[Trajectory]:
    script = actions(envs.single_action_space)
    mode = envs.metadata["autoreset_mode"]
    seen, _ = envs.reset(seed=SEED)
    trajectories: list[Trajectory] = [[] for _ in range(NUM_ENVS)]
    ended = np.zeros(NUM_ENVS, dtype=bool)
    while min(map(len, trajectories)) < STEPS:
        counts = [min(len(trajectory), STEPS - 1) for trajectory in trajectories]
        chosen = np.array([script[i][counts[i]] for i in range(NUM_ENVS)])
        following, rewards, terminated, truncated, infos = envs.step(chosen)
        for i in range(NUM_ENVS):
            if mode is AutoresetMode.NEXT_STEP and ended[i]:
                continue
            done = bool(terminated[i] or truncated[i])
            after = first_row(take(following, np.array([i])))
            last = infos["final_obs"][i] if done and mode is AutoresetMode.SAME_STEP else after
            row = first_row(take(seen, np.array([i])))
            trajectories[i].append((row, chosen[i], float(np.float32(rewards[i])), last, done))
        ended = terminated | truncated
        seen = following
    envs.close()
    return [trajectory[:STEPS] for trajectory in trajectories]


def assert_equal(one: list[Trajectory], other: list[Trajectory]) -> None:
    assert sum(row[-1] for trajectory in one for row in trajectory) > NUM_ENVS
    for left, right in zip(one, other, strict=True):
        for (obs, act, reward, following, done), (obs_2, act_2, reward_2, following_2, done_2) in zip(
            left, right, strict=True
        ):
            for a, b in ((obs, obs_2), (following, following_2), (act, act_2)):
                np.testing.assert_equal(a, b)
            assert (reward, done) == (reward_2, done_2)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_same_seed_gives_the_same_trajectory_in_all_forms(observation: str, action: str) -> None:
    def make() -> gym.Env[Any, Any]:
        return Walker(observation, action)

    def make_wrapped() -> gym.Env[Any, Any]:
        return wrap(make(), InternalState, PartialObservation, HomeostatReward)

    gym_form = run_sb3(DummyVecEnv([make_wrapped] * NUM_ENVS))
    vec_form = wrap(DummyVecEnv([make] * NUM_ENVS), VecInternalState, VecPartialObservation, VecHomeostatReward)
    assert_equal(gym_form, run_sb3(vec_form))
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        envs = SyncVectorEnv([make] * NUM_ENVS, autoreset_mode=mode)
        wrapped = wrap(envs, VectorInternalState, VectorPartialObservation, VectorHomeostatReward)
        assert_equal(gym_form, run_vector(wrapped))


def make_walker() -> gym.Env[Any, Any]:
    return Walker()


def test_a_subprocess_gives_the_same_trajectory() -> None:
    forms = [
        wrap(kind([make_walker] * NUM_ENVS), VecInternalState, VecPartialObservation, VecHomeostatReward)
        for kind in (DummyVecEnv, SubprocVecEnv)
    ]
    assert_equal(*map(run_sb3, forms))


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_gymnasium_checker_accepts_the_stack(observation: str) -> None:
    wrapped = wrap(Walker(observation), InternalState, PartialObservation, HomeostatReward)
    check_env(wrapped, skip_render_check=True)


def test_env_spec_rebuilds_the_stack() -> None:
    gym.register("Walker-v0", entry_point="tests.toys:Walker")
    env = wrap(gym.make("Walker-v0"), InternalState, PartialObservation, HomeostatReward)
    again = gym.make(env.spec)
    assert str(again) == str(env)


class Recorder(Layer):
    """Keeps what it is shown, and executes the other action."""

    def __init__(self) -> None:
        self.bound: list[bool] = []

    def attach(self, *args: Any) -> None:
        super().attach(*args)
        self.transitions: list[tuple[Any, ...]] = []

    def bind(self, bundle: Any, *, training: bool) -> None:
        self.bound.append(training)

    def act(self, action: Any) -> Any:
        return 2 - action

    def after(self, step: Step) -> np.ndarray:
        for i in np.flatnonzero(step.live):
            self.transitions.append(
                (i, step.observation[i].copy(), step.action[i], step.next_observation[i].copy(), step.truncated[i])
            )
        return step.reward


class Record(LayerWrapper):
    layer_type = Recorder
    layer: Recorder


class VecRecord(VecLayerWrapper):
    layer_type = Recorder


class VectorRecord(VectorLayerWrapper):
    layer_type = Recorder


FORMS: dict[str, Callable[[], Any]] = {
    "gym": lambda: DummyVecEnv([lambda: Record(Walker())]),
    "sb3": lambda: VecRecord(DummyVecEnv([Walker])),
    "next_step": lambda: VectorRecord(SyncVectorEnv([Walker], autoreset_mode=AutoresetMode.NEXT_STEP)),
    "same_step": lambda: VectorRecord(SyncVectorEnv([Walker], autoreset_mode=AutoresetMode.SAME_STEP)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_successor_is_the_last_observation_and_never_the_reset(form: str) -> None:
    envs = FORMS[form]()
    if form in ("gym", "sb3"):
        envs.seed(SEED)
        envs.reset()
    else:
        envs.reset(seed=SEED)
    for _ in range(40):
        envs.step(np.array([2]))
    layer: Recorder = envs.envs[0].layer if form == "gym" else envs.layer
    assert len(layer.transitions) >= 36
    for _, observation, action, following, truncated in layer.transitions:
        assert action == 0
        # The third entry of Walker's observation counts the steps of the episode.
        assert following[2] == observation[2] + 1
        assert truncated == (following[2] == 12)


def test_monitor_keeps_the_raw_task_reward() -> None:
    env = wrap(Monitor(Walker()), InternalState, PartialObservation, HomeostatReward)
    env.reset(seed=0)
    raw = 0.0
    while True:
        _, reward, terminated, truncated, info = env.step(1)
        assert reward == pytest.approx(info["reward_terms"]["task"] + info["reward_terms"]["homeo"])
        assert info["reward_terms"]["task"] == 1.0
        raw += 1.0
        if terminated or truncated:
            break
    assert info["episode"]["r"] == raw


def test_bind_goes_down_the_gymnasium_stack() -> None:
    inner = Record(Walker())
    outer = Record(InternalState(inner, dims=["battery", "heat"], constraints=["battery >= 0.2"]))
    outer.bind({}, training=False)
    assert outer.layer.bound == inner.layer.bound == [False]


def test_lookup_finds_the_nearest_in_every_form() -> None:
    stacks = [
        wrap(Walker(), InternalState, PartialObservation, HomeostatReward),
        wrap(DummyVecEnv([Walker]), VecInternalState, VecPartialObservation, VecHomeostatReward),
        DummyVecEnv([lambda: wrap(Walker(), InternalState, PartialObservation, HomeostatReward)]),
        wrap(SyncVectorEnv([Walker]), VectorInternalState, VectorPartialObservation, VectorHomeostatReward),
    ]
    for stack_ in stacks:
        assert lookup(stack_, "internal_names") == ("battery", "heat")
        with pytest.raises(AttributeError, match="horses"):
            lookup(stack_, "horses")


def test_a_layer_names_what_it_lacks() -> None:
    with pytest.raises(RuntimeError, match=r"HomeostatReward needs 'viability'.*InternalState"):
        HomeostatReward(Walker())


def test_a_vector_env_must_say_how_it_resets() -> None:
    envs = SyncVectorEnv([Walker])
    envs.metadata = {}
    with pytest.raises(TypeError, match="autoreset_mode"):
        VectorInternalState(envs, dims=["battery", "heat"])


def test_reset_mask_begins_only_these_episodes() -> None:
    envs = SyncVectorEnv([Walker] * 2, autoreset_mode=AutoresetMode.DISABLED)
    wrapped = VectorInternalState(envs, **INTERNAL)
    first, _ = wrapped.reset(seed=1)
    second, _, *_ = wrapped.step(np.array([1, 1]))
    third, _ = wrapped.reset(seed=[5, 5], options={"reset_mask": np.array([False, True])})
    np.testing.assert_array_equal(third[0], second[0])
    assert third[1, 2] == 0.0 and second[1, 2] == 1.0
    assert not np.array_equal(first[1], third[1])


class Fragile(Walker):
    def step(self, action: Any) -> Any:
        if self.time == 3:
            raise SystemExit(3)
        return super().step(action)


def make_fragile() -> gym.Env[Any, Any]:
    return Fragile()


def test_a_dead_worker_is_named() -> None:
    venv = VecInternalState(
        SubprocVecEnv([make_walker, make_fragile]), dims=["battery", "heat"], constraints=["battery >= 0.2"]
    )
    venv.reset()
    for _ in range(3):
        venv.step(np.array([0, 0]))
    with pytest.raises(RuntimeError, match=r"worker 1 \(pid \d+, exit code 3\) died.*Checkpoints"):
        venv.step(np.array([0, 0]))


@pytest.mark.parametrize("kind", [*OBSERVATIONS])
def test_batched_flatten_is_gymnasiums(kind: str) -> None:
    space = OBSERVATIONS[kind]
    space.seed(0)
    rows = [space.sample() for _ in range(4)]
    expected = np.array([gym.spaces.flatten(space, row) for row in rows], dtype=np.float64)
    np.testing.assert_allclose(flatten(space, stack(rows)), expected)
    np.testing.assert_equal(first_row(add_batch_axis(rows[0])), rows[0])
