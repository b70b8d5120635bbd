"""Setpoints drawn for every episode: what they are, who sees them, and that the reward goes by them."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from persist_sb3 import PersistConfig
from persist_sb3.callbacks import MetricsCallback
from persist_sb3.homeostat import Homeostat
from persist_sb3.wrappers import (
    HomeostatReward,
    InternalState,
    RandomSetpoint,
    VecHomeostatReward,
    VecInternalState,
    VecRandomSetpoint,
    VectorHomeostatReward,
    VectorInternalState,
    VectorRandomSetpoint,
)
from persist_sb3.wrappers.homeostat_reward import HomeostatRewardLayer
from tests.toys import OBSERVATIONS, Walker

LIMITS: dict[str, Any] = {
    "dims": ["battery", "heat"],
    "constraints": ["battery >= 0.2", "heat in [0.3, 0.7]"],
    "mu": [0.7, 0.5],
    "low": [-0.5, 0.0],
    "high": [1.0, 1.0],
}
RANGES = {"battery": [0.4, 0.9]}
REWARD: dict[str, Any] = {"w": [1.0, 2.0], "alive_bonus": "auto", "death_penalty": 1.0, "weight": 0.5}


def make(observation: str = "box") -> gym.Env[Any, Any]:
    return RandomSetpoint(InternalState(Monitor(Walker(observation)), **LIMITS), ranges=RANGES)


def test_an_episode_keeps_its_setpoint_and_shows_it() -> None:
    env = HomeostatReward(make(), **REWARD)
    assert isinstance(env.observation_space, spaces.Box) and env.observation_space.shape == (5,)
    np.testing.assert_allclose((env.observation_space.low[-1], env.observation_space.high[-1]), (0.4, 0.9))
    bonus = 1.0 * 0.7**2 + 2.0 * 0.2**2  # battery at 0.2 with a setpoint of 0.9, heat at its limit
    drawn = []
    observation, info = env.reset(seed=3)
    for _ in range(60):
        mu = info["setpoint"][0]
        drawn.append(mu)
        done = False
        while not done:
            assert observation[-1] == np.float32(mu)
            observation, _, terminated, truncated, info = env.step(1)
            assert info["setpoint"].tolist() == [mu, 0.5]
            x = info["internal"]
            homeo = -1.0 if info["cost"] else bonus
            homeo -= (x[0] - mu) ** 2 + 2.0 * (x[1] - 0.5) ** 2
            assert info["reward_terms"]["homeo"] == pytest.approx(0.5 * homeo)
            done = terminated or truncated
        observation, info = env.reset()
    assert 0.4 <= min(drawn) < 0.45 and 0.85 < max(drawn) <= 0.9
    assert np.mean(drawn) == pytest.approx(0.65, abs=0.06)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_observation_has_room_for_it(observation: str) -> None:
    env = make(observation)
    check_env(env, warn=False)
    seen, info = env.reset(seed=0)
    shown = seen["setpoint"] if observation == "dict" else seen[-1:]
    assert shown == np.float32(info["setpoint"][:1])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_three_forms_agree(mode: AutoresetMode) -> None:
    n = 3
    single = [HomeostatReward(make(), **REWARD) for _ in range(n)]
    vec: VecEnv = VecInternalState(DummyVecEnv([lambda: Monitor(Walker())] * n), **LIMITS)
    vec = VecHomeostatReward(VecRandomSetpoint(vec, ranges=RANGES), **REWARD)
    vector: Any = VectorInternalState(SyncVectorEnv([Walker] * n, autoreset_mode=mode), **LIMITS)
    vector = VectorHomeostatReward(VectorRandomSetpoint(vector, ranges=RANGES), **REWARD)
    vec.seed(5)
    seen = np.stack([env.reset(seed=5 + i)[0] for i, env in enumerate(single)])
    np.testing.assert_array_equal(seen, vec.reset())
    np.testing.assert_array_equal(seen, vector.reset(seed=5)[0])
    waiting = np.zeros(n, dtype=bool)
    for t in range(40 if mode is AutoresetMode.SAME_STEP else 8):
        actions = np.array([t % 3, 1, 2])
        rewards, rows = np.zeros(n), []
        for i, env in enumerate(single):
            observation, rewards[i], terminated, truncated, _ = env.step(actions[i])
            waiting[i] = terminated or truncated
            rows.append(env.reset()[0] if waiting[i] else observation)
        observed, reward, _, _ = vec.step(actions)
        np.testing.assert_array_equal(observed, np.stack(rows))
        np.testing.assert_array_equal(reward, rewards.astype(np.float32))
        observed, reward, *_ = vector.step(actions)
        np.testing.assert_array_equal(reward, rewards)
        if mode is AutoresetMode.SAME_STEP:
            np.testing.assert_array_equal(observed, np.stack(rows))
        elif waiting.any():
            break


def test_a_setpoint_can_be_chosen_and_given_back() -> None:
    first, second = make(), make()
    assert isinstance(first, RandomSetpoint)
    drawn: list[list[float]] = [[], []]
    for env, out in zip((first, second), drawn, strict=True):
        out.append(env.reset(seed=1)[1]["setpoint"][0])
    first.set_setpoint({"battery": 0.55})
    assert first.reset()[1]["setpoint"].tolist() == [0.55, 0.5]
    assert first.step(0)[4]["setpoint"].tolist() == [0.55, 0.5]
    first.set_setpoint({})
    assert first.reset()[1]["setpoint"].tolist() == [0.7, 0.5]
    first.set_setpoint(None)
    for _ in range(2):
        second.reset()
    # What is drawn afterwards is the same as if nothing had been chosen.
    assert first.reset()[1]["setpoint"][0] == second.reset()[1]["setpoint"][0]
    assert drawn[0] == drawn[1]
    for wrong, message in (({"heat": 0.5}, "'heat'"), ({"battery": 0.95}, "0.95")):
        with pytest.raises(ValueError, match=message):
            first.set_setpoint(wrong)


@pytest.mark.parametrize("kind", ["dummy", pytest.param("subproc", marks=pytest.mark.slow)])
def test_through_vectors_of_environments(kind: str) -> None:
    env: VecEnv = DummyVecEnv([make] * 2) if kind == "dummy" else SubprocVecEnv([make])
    env.env_method("set_setpoint", {"battery": 0.8})
    env.reset()
    assert [info["setpoint"][0] for info in env.reset_infos] == [0.8] * env.num_envs
    env.close()


@pytest.mark.parametrize(
    ("ranges", "message"),
    [({}, "no setpoint"), ({"battery": [0.5]}, "least, greatest"), ({"battery": [0.9, 0.5]}, "in this order")],
)
def test_refuses_at_construction(ranges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomSetpoint(InternalState(Walker(), **LIMITS), ranges=ranges)


@pytest.mark.parametrize(
    ("ranges", "message"), [({"batery": [0.5, 0.9]}, "battery"), ({"battery": [0.1, 0.9]}, "leave its constraints")]
)
def test_refuses_what_the_constraints_forbid(ranges: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        RandomSetpoint(InternalState(Walker(), **LIMITS), ranges=ranges)


def test_refuses_two_and_a_reward_with_setpoints_of_its_own() -> None:
    with pytest.raises(RuntimeError, match="one RandomSetpoint"):
        RandomSetpoint(make("dict"), ranges=RANGES)
    with pytest.raises(RuntimeError, match="leave mu out"):
        HomeostatReward(make(), mu=[0.5, 0.5])
    with pytest.raises(RuntimeError, match="mu="):
        RandomSetpoint(InternalState(Walker(), dims=["battery"], constraints=["battery >= 0"]), ranges=RANGES)


@pytest.mark.parametrize("form", ["deviation", "drive_reduction"])
def test_the_bonus_is_enough_for_every_setpoint(form: Any) -> None:
    env = make()
    viability = env.get_wrapper_attr("viability")
    low, high = env.get_wrapper_attr("setpoint_range")
    bonus = Homeostat(viability.mu, [1.0, 2.0], form=form).safe_alive_bonus(viability, setpoints=(low, high))
    alone = [
        Homeostat([mu, 0.5], [1.0, 2.0], form=form).safe_alive_bonus(viability) for mu in np.linspace(0.4, 0.9, 21)
    ]
    assert bonus == pytest.approx(max(alone))


def test_evaluation_keeps_the_declared_setpoint() -> None:
    env, evaluation = (DummyVecEnv([lambda: HomeostatReward(make(), **REWARD)] * 2) for _ in range(2))
    seen: list[list[float]] = [[], []]

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            for venv, shown in zip((env, evaluation), seen, strict=True):
                observations: Any = venv.buf_obs
                shown += [float(row[-1]) for row in observations[None]]
            return True

    tester = EvalCallback(evaluation, eval_freq=8, n_eval_episodes=2, callback_after_eval=Look(), verbose=0)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, policy_kwargs={"net_arch": [8]})
    model.learn(64, callback=[tester, MetricsCallback()])
    assert set(seen[1]) == {np.float32(0.7)}
    assert len(set(seen[0])) > 2


W_RANGES = {"battery": [0.5, 4.0]}


def weighted(observation: str = "box") -> gym.Env[Any, Any]:
    state = InternalState(Monitor(Walker(observation)), **LIMITS)
    return RandomSetpoint(state, ranges=RANGES, w_ranges=W_RANGES, w=[1.0, 2.0])


@pytest.mark.parametrize("form", ["deviation", "drive_reduction"])
def test_weights_are_drawn_shown_and_rewarded_by(form: Any) -> None:
    env = HomeostatReward(weighted(), form=form, death_penalty=1.0, alive_bonus=3.0)
    assert isinstance(env.observation_space, spaces.Box) and env.observation_space.shape == (6,)
    np.testing.assert_allclose(
        (env.observation_space.low[-2:], env.observation_space.high[-2:]), [[0.4, 0.5], [0.9, 4]]
    )
    drawn = []
    observation, info = env.reset(seed=3)
    for _ in range(40):
        mu, weight = info["setpoint"][0], info["setpoint_weights"][0]
        drawn.append((mu, weight))
        x, done = info["internal"], False
        while not done:
            np.testing.assert_array_equal(observation[-2:], np.array([mu, weight], dtype=np.float32))
            observation, _, terminated, truncated, info = env.step(1)
            assert info["setpoint"].tolist() == [mu, 0.5] and info["setpoint_weights"].tolist() == [weight, 2.0]
            before, x = x, info["internal"]
            costs = [weight * (s[0] - mu) ** 2 + 2.0 * (s[1] - 0.5) ** 2 for s in (before, x)]
            gain = -costs[1] if form == "deviation" else np.sqrt(costs[0]) - np.sqrt(costs[1])
            assert info["reward_terms"]["homeo"] == pytest.approx(gain + (-1.0 if info["cost"] else 3.0))
            done = terminated or truncated
        observation, info = env.reset()
    mus, ws = np.array(drawn).T
    assert 0.5 <= ws.min() < 0.8 and 3.6 < ws.max() <= 4.0
    assert abs(np.corrcoef(mus, ws)[0, 1]) < 0.4


def test_weights_can_be_chosen_and_are_as_declared_in_evaluation() -> None:
    env = weighted("dict")
    assert isinstance(env, RandomSetpoint)
    env.set_setpoint({"w/battery": 3.0})
    seen, info = env.reset(seed=0)
    assert info["setpoint"].tolist() == [0.7, 0.5] and info["setpoint_weights"].tolist() == [3.0, 2.0]
    np.testing.assert_array_equal(seen["setpoint"], np.array([0.7, 3.0], dtype=np.float32))
    with pytest.raises(ValueError, match="w/battery' is 5"):
        env.set_setpoint({"w/battery": 5.0})
    env.set_setpoint(None)
    env.bind({}, training=False)
    assert env.reset()[1]["setpoint_weights"].tolist() == [1.0, 2.0]
    alone = RandomSetpoint(InternalState(Walker(), **LIMITS), ranges={}, w_ranges=W_RANGES)
    info = HomeostatReward(alone, alive_bonus="auto").reset(seed=0)[1]
    assert info["setpoint"].tolist() == [0.7, 0.5] and info["setpoint_weights"][1] == 1.0


def test_the_three_forms_draw_the_same_weights() -> None:
    limits = {"ranges": RANGES, "w_ranges": W_RANGES}
    vec = VecRandomSetpoint(VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS), **limits)
    vector: Any = VectorRandomSetpoint(VectorInternalState(SyncVectorEnv([Walker] * 2), **LIMITS), **limits)
    single = [RandomSetpoint(InternalState(Walker(), **LIMITS), **limits) for _ in range(2)]
    expected = np.stack([env.reset(seed=5 + i)[1]["setpoint_weights"] for i, env in enumerate(single)])
    vec.seed(5)
    vec.reset()
    np.testing.assert_array_equal([info["setpoint_weights"] for info in vec.reset_infos], expected)
    np.testing.assert_array_equal(vector.reset(seed=5)[1]["setpoint_weights"], expected)
    assert len(np.unique(expected[:, 0])) == 2


@pytest.mark.parametrize("form", ["deviation", "drive_reduction"])
def test_the_bonus_is_enough_for_every_weight(form: Any) -> None:
    env = HomeostatReward(weighted(), form=form, alive_bonus="auto")
    viability, layer = env.get_wrapper_attr("viability"), env.layer
    assert isinstance(layer, HomeostatRewardLayer)
    needed = [
        Homeostat([mu, 0.5], [w, 2.0], form=form).safe_alive_bonus(viability)
        for mu in np.linspace(0.4, 0.9, 11)
        for w in np.linspace(0.5, 4.0, 11)
    ]
    assert layer.homeostat.alive_bonus == pytest.approx(max(needed))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"w_ranges": {"battery": [-1.0, 2.0]}}, ValueError, "at least 0"),
        ({"w_ranges": {"battery": [2.0, 1.0]}}, ValueError, "w_ranges.*in this order"),
        ({"w": [1.0, 1.0]}, ValueError, "give w to HomeostatReward"),
        ({"w_ranges": {"batery": [0.0, 2.0]}}, RuntimeError, "w_ranges.*battery"),
        ({"w_ranges": {"battery": [2.0, 4.0]}}, RuntimeError, r"weight of 'battery', 1, lies outside.*\[2, 4\]"),
        ({"w_ranges": W_RANGES, "w": [1.0]}, RuntimeError, "1 entries for 2 variables"),
    ],
)
def test_weights_that_cannot_be_drawn_are_refused(kwargs: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        RandomSetpoint(InternalState(Walker(), **LIMITS), ranges=RANGES, **kwargs)


def test_a_reward_with_weights_of_its_own_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"give w to RandomSetpoint"):
        HomeostatReward(weighted(), w=[1.0, 1.0])


class Tank(gym.Env[Any, Any]):
    """A level that each action moves down, not at all, or up by 0.1; every episode is 20 steps."""

    observation_space = spaces.Box(0.0, 1.0, (1,), dtype=np.float32)
    action_space = spaces.Discrete(3)

    def _seen(self) -> tuple[Any, dict[str, Any]]:
        return np.array([self.level], dtype=np.float32), {"internal": np.array([self.level])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.level, self.time = 0.5, 0
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.level = float(np.clip(self.level + 0.1 * (int(action) - 1), 0.0, 1.0))
        observation, info = self._seen()
        return observation, 0.0, False, self.time == 20, info


@pytest.mark.slow
def test_one_agent_keeps_any_setpoint() -> None:
    def tank() -> gym.Env[Any, Any]:
        state = InternalState(Monitor(Tank()), dims=["level"], constraints=["level in [0.01, 0.99]"], mu=[0.5])
        return HomeostatReward(RandomSetpoint(state, ranges={"level": [0.1, 0.9]}), alive_bonus="auto", weight=10.0)

    env = DummyVecEnv([tank] * 8)
    model = PPO("MlpPolicy", env, n_steps=40, batch_size=80, gamma=0.8, learning_rate=3e-3, seed=0)
    model.learn(30_000)
    for setpoint in (0.15, 0.35, 0.6, 0.85):
        env.env_method("set_setpoint", {"level": setpoint})
        observation: Any = env.reset()
        for _ in range(19):
            action, _ = model.predict(observation, deterministic=True)
            observation, _, _, infos = env.step(action)
        assert [info["internal"][0] for info in infos] == pytest.approx([setpoint] * 8, abs=0.08)


def test_a_configuration_has_ranges() -> None:
    config = PersistConfig.model_validate({"internal_state": {"mu_ranges": {"energy": [0.5, 0.9]}}})
    assert [name for name, _ in config.layers()] == ["InternalState", "RandomSetpoint", "HomeostatReward"]
    env = config.make_env()
    assert env.reset(seed=0)[0]["setpoint"].shape == (1,)


def test_a_configuration_has_ranges_of_weights() -> None:
    ranges = {"w": [1.0, 0.5, 1.5], "w_ranges": {"energy": [0.5, 8.0]}}
    env = PersistConfig.model_validate({"internal_state": ranges}).make_env()
    seen, info = env.reset(seed=0)
    assert seen["setpoint"] == np.float32(info["setpoint_weights"][:1]) and seen["setpoint"].shape == (1,)
    assert info["setpoint_weights"].tolist()[1:] == [0.5, 1.5]
