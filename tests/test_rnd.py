"""RND: whitening, warm-up, unit, the true next observation, frozen in evaluation, saved and resumed."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from persist_sb3.callbacks import MetricsCallback, RNDCallback, ViabilityCallback
from persist_sb3.config import PersistConfig
from persist_sb3.intrinsic import RND, BonusUnit
from persist_sb3.models.base import rebuild
from persist_sb3.models.spec import StateSpec
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import (
    ActionShield,
    InternalState,
    NonFiniteError,
    PartialObservation,
    RNDBonus,
    VecActionShield,
    VecInternalState,
    VecRNDBonus,
    VectorInternalState,
    VectorRNDBonus,
)
from persist_sb3.wrappers.remake import remake
from tests.learners import make_model
from tests.toys import OBSERVATIONS, Scripted, Walker

LIMITS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"]}
VIABILITY = ViabilitySet(["battery >= 0.2"], ["battery", "heat"])


class Noise(gym.Env[Any, Any]):
    """Observations from N(3, 2^2), whatever is done; an episode ends after ten steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (5,), dtype=np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(3)

    def __init__(self, continuous: bool = False) -> None:
        if continuous:
            self.action_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        return self.np_random.normal(3.0, 2.0, 5).astype(np.float32), {"internal": np.array([0.5, 0.5])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        observation, info = self._observe()
        return observation, float(np.sum(action)), False, self.time >= 10, info


gym.register("persist_sb3_tests/Noise-v0", lambda **kwargs: Noise(**kwargs))


def make_noise(continuous: bool = False) -> gym.Env[Any, Any]:
    return Monitor(gym.make("persist_sb3_tests/Noise-v0", continuous=continuous))


def make_spec(size: int) -> StateSpec:
    return StateSpec(spaces.Box(-np.inf, np.inf, (size,)), spaces.Discrete(2), VIABILITY)


def identity_target(size: int) -> RND:
    """Predicts 0 where the target repeats the whitened observation, so the error is its mean square."""
    rnd = RND(make_spec(size), net_arch=[], features=size)
    with torch.no_grad():
        rnd.networks.weights[0][0] = torch.eye(size)
        rnd.networks.weights[0][1] = 0.0
    return rnd


def make_vec(inner: Callable[[], gym.Env[Any, Any]], n: int = 2, weight: float = 1.0) -> VecRNDBonus:
    return VecRNDBonus(VecInternalState(DummyVecEnv([inner] * n), **LIMITS), weight=weight)


class Recorder(BaseCallback):
    """Keeps what the bonus was made of, at each step ``(n,)``."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, np.ndarray]] = []
        self.started: dict[str, Any] | None = None

    def _on_rollout_start(self) -> None:
        if self.started is None:
            self.started = copy.deepcopy(state_of(self.model))

    def _on_step(self) -> bool:
        infos, rnd = self.locals["infos"], self.model.persist.parts["rnd"]  # type: ignore[attr-defined]
        self.rows.append(
            {
                "bonus": np.array([info["reward_terms"]["intrinsic"] for info in infos]),
                "task": np.array([info["reward_terms"]["task"] for info in infos]),
                "novelty": np.array([info["persist"]["novelty"] for info in infos]),
                "dones": self.locals["dones"].copy(),
                "unit": np.array(float(rnd.unit)),
                "count": np.array(float(rnd.standardizer.count)),
            }
        )
        return True

    def column(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.rows])


def state_of(model: BaseAlgorithm) -> dict[str, Any]:
    parts = model.persist.parts  # type: ignore[attr-defined]
    return {"rnd": parts["rnd"].state_dict(), "training": parts["rnd_training"].state_dict()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else bool(np.all(a == b))


# The model


def test_the_error_without_torch_follows_every_change() -> None:
    rnd = RND(make_spec(5), [8])
    rows = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)

    def agree() -> None:
        for count in (6, 2, 6):
            expected = rnd(torch.from_numpy(rows[:count])).detach().numpy()
            np.testing.assert_allclose(rnd.error(rows[:count]), expected, rtol=1e-4)

    agree()
    rnd.standardizer.update(torch.from_numpy(rows + 1.0))
    agree()
    with torch.no_grad():
        rnd.networks.biases[0][1] += 0.5
        rnd.networks.weights[-1][0] *= 2.0
    agree()
    rnd.share_memory()
    with torch.no_grad():
        rnd.networks.biases[-1][1] -= 0.5
    agree()
    other = copy.deepcopy(rnd)
    with torch.no_grad():
        other.networks.biases[-1][1] -= 0.5
    agree()
    assert not np.allclose(other.error(rows), rnd.error(rows))


def test_novelty_by_hand() -> None:
    rnd = identity_target(2)
    # Mean (2, 10), variance (1, 4), as the population's.
    rnd.standardizer.update(torch.tensor([[1.0, 8.0], [3.0, 12.0], [1.0, 12.0], [3.0, 8.0]]))
    observations = np.array([[2.0, 10.0], [3.0, 14.0], [1.0, 10.0]], dtype=np.float32)
    np.testing.assert_allclose(rnd.error(observations), [0.0, (1 + 4) / 2, 1 / 2], rtol=1e-3, atol=1e-6)


def test_whitened_observations_are_clipped_to_five() -> None:
    rnd = identity_target(3)
    rnd.standardizer.update(torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)))
    assert rnd.error(np.array([[1e6, -1e6, 1e9]], dtype=np.float32)) == pytest.approx([25.0])


def test_both_ways_to_the_error_agree() -> None:
    torch.manual_seed(0)
    rnd = RND(make_spec(7), net_arch=[16, 8], features=5, ignore=[1, 4])
    rnd.standardizer.update(torch.randn(50, 5) * 3 + 1)
    encoded = torch.randn(20, 5)
    np.testing.assert_allclose(rnd.error(encoded.numpy()), rnd(encoded).detach().numpy(), rtol=1e-4)


def test_gradients_by_hand_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    rnd = RND(make_spec(7), net_arch=[16, 8], features=5, ignore=[1, 4])
    rnd.standardizer.update(torch.randn(50, 5) * 3 + 1)
    for batch in (torch.randn(33, 5), torch.randn(12, 5)):  # the second writes over the first
        rnd.zero_grad()
        loss = rnd(batch).mean()
        loss.backward()
        expected = [parameter.grad.clone() for parameter in rnd.parameters() if parameter.grad is not None]
        assert rnd.backpropagate(batch) == pytest.approx(loss.item())
        assert len(expected) == 6
        for parameter, gradient in zip(rnd.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def reference_rewards(observations: np.ndarray, rnd: RND, gamma: float) -> np.ndarray:
    """
    The intrinsic rewards of a sequence, step by step as in the published code (github.com/openai/random-network-
    distillation: ``ppo_agent.py``, ``utils.py``, ``mpi_util.py``): observations whitened by running moments and clipped
    to +-5, the predictor's mean square error, divided by the standard deviation of ``RunningMeanStd(epsilon=1e-4)``
    over the returns that ``RewardForwardFilter`` makes, mean not subtracted.

    :param observations: ``(T, n, D)``, of which the first step whitens
    """
    mean, var, count = 0.0, 1.0, 1e-4
    returns: Any = None
    flat = observations[0]
    white_mean, white_var = flat.mean(axis=0), flat.var(axis=0)
    rewards = []
    target, predictor = ([w[i].detach().numpy() for w in rnd.networks.weights] for i in (0, 1))
    for step in observations[1:]:
        x = np.clip((step - white_mean) / np.sqrt(white_var + 1e-4), -5.0, 5.0)
        out = []
        for layers in (target, predictor):
            h = x
            for weight in layers[:-1]:
                h = np.maximum(h @ weight, 0.0)
            out.append(h @ layers[-1])
        reward = np.square(out[0] - out[1]).mean(axis=1)
        rewards.append(reward)
        returns = reward if returns is None else returns * gamma + reward
        delta, total = returns.mean() - mean, count + len(returns)
        squares = var * count + returns.var() * len(returns) + delta**2 * count * len(returns) / total
        mean, var, count = mean + delta * len(returns) / total, squares / total, total
    return np.array(rewards) / np.sqrt(var)


def test_the_published_code_gives_the_same_rewards() -> None:
    torch.manual_seed(1)
    rnd = RND(make_spec(4), net_arch=[16, 16], features=8)
    observations = np.random.default_rng(0).normal(3.0, [[[1.0, 2.0, 0.1, 30.0]]], (200, 4, 4)).astype(np.float32)
    rnd.standardizer.update(torch.from_numpy(observations[0]))
    unit = BonusUnit(gamma=0.99)
    errors = [rnd.error(rnd.encode(step)) for step in observations[1:]]
    for error in errors:
        unit.measure(error)
    ours = np.array(errors) / unit.scale.std
    np.testing.assert_allclose(ours, reference_rewards(observations, rnd, 0.99), rtol=1e-3)


def test_layers_keep_the_size_of_the_signal() -> None:
    torch.manual_seed(0)
    rnd = RND(make_spec(60))
    for weights in rnd.networks.weights:
        for weight in weights:
            narrow = weight if weight.shape[0] <= weight.shape[1] else weight.T
            torch.testing.assert_close(narrow @ narrow.T, 2.0 * torch.eye(len(narrow)), rtol=0.0, atol=1e-4)


def test_learning_lowers_the_novelty_of_what_was_seen() -> None:
    torch.manual_seed(0)
    rnd = RND(make_spec(4))
    seen, unseen = torch.randn(256, 4) - 2.0, torch.randn(256, 4) + 2.0
    rnd.standardizer.update(torch.cat([seen, unseen]))
    target = [weight[0].clone() for weight in rnd.networks.parameters()]
    before = rnd(seen).mean(), rnd(unseen).mean()
    optimizer = torch.optim.Adam(rnd.parameters(), lr=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        rnd(seen).mean().backward()
        optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(target, (p[0] for p in rnd.networks.parameters()), strict=True))
    assert rnd(seen).mean() < 0.05 * before[0]
    assert rnd(unseen).mean() > 5 * rnd(seen).mean()


@pytest.mark.parametrize("kind", ["box", "dict", "discrete"])
def test_the_observation_alone_is_looked_at(kind: str) -> None:
    space = OBSERVATIONS[kind]
    rnd = RND(StateSpec(space, spaces.Discrete(2), VIABILITY))
    space.seed(0)
    samples = [space.sample() for _ in range(6)]
    env = DummyVecEnv([partial(Walker, kind)])
    batch: Any = np.stack(samples) if kind != "dict" else {k: np.stack([s[k] for s in samples]) for k in env.reset()}
    expected: Any = [spaces.flatten(space, sample) for sample in samples]
    np.testing.assert_allclose(rnd.encode(batch), np.array(expected))


def test_is_rebuilt_from_what_was_saved() -> None:
    rnd = RND(make_spec(6), net_arch=[8], features=3, ignore=[2])
    rnd.unit.fill_(0.3)
    copied = rebuild(rnd.state_dict(), make_spec(6), RND)
    observation = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_array_equal(copied.error(copied.encode(observation)), rnd.error(rnd.encode(observation)))
    assert copied.unit == rnd.unit


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"features": 0}, "features=0"), ({"net_arch": [8, 0]}, "net_arch"), ({"ignore": range(6)}, "leaves nothing")],
)
def test_wrong_models_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RND(make_spec(6), **kwargs)


# The layer

ROWS = [[1.0, 0.0], [2.0, 0.0], [7.0, 1.0]]


def bound(env: Any, unit: float = 0.25) -> Any:
    rnd = identity_target(2)
    rnd.unit.fill_(unit)
    env.bind({"rnd": rnd}, training=True)
    return env


#: Mean squares of the rows clipped to 5, times the unit 0.25, times the weight 3.
BONUSES = [3 * 0.25 * (4 + 0) / 2, 3 * 0.25 * (25 + 1) / 2]


def test_bonus_by_hand_in_a_gymnasium_env() -> None:
    env = bound(RNDBonus(InternalState(Scripted(ROWS, reward=1.0), **LIMITS), weight=3.0))
    for _ in range(2):
        env.reset()
        for expected in BONUSES:
            _, reward, _, _, info = env.step(0)
            assert info["reward_terms"] == pytest.approx({"task": 1.0, "intrinsic": expected}, rel=1e-3)
            assert reward == pytest.approx(1.0 + expected, rel=1e-3)


def test_the_last_observation_counts_and_not_the_reset_one() -> None:
    env = bound(VecRNDBonus(VecInternalState(DummyVecEnv([lambda: Scripted(ROWS)] * 2), **LIMITS), weight=3.0))
    env.reset()
    for expected in BONUSES * 2:
        _, reward, _, infos = env.step(np.zeros(2, dtype=int))
        np.testing.assert_allclose(reward, expected, rtol=1e-3)
        assert [info["reward_terms"]["intrinsic"] for info in infos] == pytest.approx([expected] * 2, rel=1e-3)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_in_either_autoreset_mode(mode: AutoresetMode) -> None:
    envs = SyncVectorEnv([lambda: Scripted(ROWS)] * 2, autoreset_mode=mode)
    env = bound(VectorRNDBonus(VectorInternalState(envs, **LIMITS), weight=3.0))
    env.reset()
    between = [0.0] if mode is AutoresetMode.NEXT_STEP else []
    for expected in [*BONUSES, *between] * 2:
        np.testing.assert_allclose(env.step(np.zeros(2, dtype=int))[1], expected, rtol=1e-3)


def test_no_bonus_before_its_unit_is_known() -> None:
    unbound = RNDBonus(InternalState(Scripted(ROWS), **LIMITS))
    unmeasured = bound(RNDBonus(InternalState(Scripted(ROWS), **LIMITS)), unit=0.0)
    for env in (unbound, unmeasured):
        env.reset()
        _, reward, _, _, info = env.step(0)
        assert reward == info["reward_terms"]["intrinsic"] == 0.0


def test_stacked_bonuses_add_up() -> None:
    env = bound(RNDBonus(RNDBonus(InternalState(Scripted(ROWS), **LIMITS), weight=1.0), weight=2.0))
    env.reset()
    _, reward, _, _, info = env.step(0)
    assert reward == pytest.approx(BONUSES[0], rel=1e-3)
    assert info["reward_terms"]["intrinsic"] == pytest.approx(BONUSES[0], rel=1e-3)


def test_a_bonus_that_is_not_finite_names_environment_and_step() -> None:
    rows = np.array(ROWS)
    bad = rows.copy()
    bad[2] = np.nan
    infos = [{"internal": np.array([0.5, 0.5])}] * 3
    scripts = [Scripted(rows, infos), Scripted(bad, infos)]
    inner = VecInternalState(DummyVecEnv([lambda: scripts[0], lambda: scripts[1]]), **LIMITS, check_finite=False)
    env = bound(VecRNDBonus(inner))
    env.reset()
    env.step(np.zeros(2, dtype=int))
    with pytest.raises(NonFiniteError, match="environment 1 is nan at step 2"):
        env.step(np.zeros(2, dtype=int))


class Camera(Walker):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (8, 8, 3), dtype=np.uint8)


def test_wrong_wiring_is_refused() -> None:
    with pytest.raises(TypeError, match="image"):
        RNDBonus(InternalState(Camera(), **LIMITS))
    with pytest.raises(ValueError, match="weight=-1"):
        RNDBonus(InternalState(Walker(), **LIMITS), weight=-1.0)
    with pytest.raises(RuntimeError, match="InternalState"):
        RNDBonus(Walker())
    env = RNDBonus(InternalState(Walker(), **LIMITS))
    with pytest.raises(RuntimeError, match=r"Box\[4\], and the policy Box\[2\]: place RNDBonus outside"):
        env.bind({"rnd": identity_target(2)}, training=True)
    env.bind({}, training=True)
    env.reset()
    with pytest.raises(RuntimeError, match=r"add persist_sb3\.callbacks\.RNDCallback"):
        env.step(0)


# The callback


def test_statistics_come_from_a_random_walk_in_a_copy() -> None:
    recorder = Recorder()
    model = make_model(make_vec(make_noise))
    model.learn(64, callback=[RNDCallback(learning_starts=4000), recorder])
    assert recorder.started is not None
    moments = {name: recorder.started["rnd"][f"standardizer.{name}"] for name in ("mean", "var", "count")}
    assert moments["count"] == 4000
    np.testing.assert_allclose(moments["mean"], 3.0, atol=0.15)  # 4.7 standard errors
    np.testing.assert_allclose(moments["var"], 4.0, atol=0.45)
    assert (recorder.column("bonus") > 0.0).all()


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_training_is_the_same_with_and_without_what_only_watches(algorithm: Any) -> None:
    results = []
    for watched in (False, True):
        make = partial(make_noise, continuous=algorithm is SAC)
        env: VecEnv = VecInternalState(DummyVecEnv([make] * 2), **LIMITS)
        model = make_model(VecRNDBonus(env, weight=0.0) if watched else env, algorithm)
        model.learn(192, callback=RNDCallback(learning_starts=50, batch_size=16, seed=5) if watched else None)
        results.append([*model.policy.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_a_copy_the_first_transitions_serve() -> None:
    recorder = Recorder()
    # The bonus of the rollout in which the hundredth transition falls is 0 to its end.
    make_model(make_vec(Walker)).learn(192, callback=[RNDCallback(learning_starts=100, batch_size=32), recorder])
    np.testing.assert_array_equal(recorder.column("bonus")[:64], 0.0)
    assert (recorder.column("bonus")[64:] > 0.0).all()
    np.testing.assert_array_equal(recorder.column("count")[:49], 0.0)
    assert recorder.column("count")[50] == 100


def test_the_unit_is_constant_in_a_rollout_and_measured_across_episodes() -> None:
    recorder = Recorder()
    callback = RNDCallback(gamma=0.9, learning_starts=100, batch_size=32)
    make_model(make_vec(make_noise, weight=0.7)).learn(256, callback=[callback, recorder])
    assert recorder.column("dones").sum() > 10
    ratio = (recorder.column("bonus") / recorder.column("novelty")).reshape(4, 32, 2)
    # The same error gives the same reward at any time in a rollout, in any environment.
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-6)
    sums = np.zeros(2)
    for novelty in recorder.column("novelty"):  # never reset, whatever ends
        sums = 0.9 * sums + novelty
    assert callback.unit.scale.sums is not None
    np.testing.assert_allclose(callback.unit.scale.sums, sums)


def test_the_weight_follows_its_schedule() -> None:
    units = []
    for schedule in (1.0, "lin_0.8"):
        recorder = Recorder()
        # At weight 0 the policy, and so the novelty that it finds, is the same under both.
        callback = RNDCallback(schedule=schedule, learning_starts=50)
        make_model(make_vec(make_noise, weight=0.0)).learn(256, callback=[callback, recorder])
        units.append(recorder.column("unit"))
    np.testing.assert_allclose(units[1] / units[0], np.repeat([0.8, 0.6, 0.4, 0.2], 32), rtol=1e-6)


def test_others_can_scale_the_weight() -> None:
    callback, recorder = RNDCallback(schedule=0.8, learning_starts=50), Recorder()
    model = make_model(make_vec(make_noise))
    model.learn(64, callback=callback)
    callback.unit.set_factor(0.25)
    model.learn(64, callback=[callback, recorder], reset_num_timesteps=False)
    assert callback.unit.scale.measured == 50 + 128
    full = make_model(make_vec(make_noise))
    other, plain = RNDCallback(schedule=0.8, learning_starts=50), Recorder()
    full.learn(64, callback=other)
    full.learn(64, callback=[other, plain], reset_num_timesteps=False)
    assert recorder.column("unit")[0] == pytest.approx(0.25 * plain.column("unit")[0])


class Advantages(BaseCallback):
    """Compares what PPO learns from with what the layers report."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[np.ndarray] = []
        self.rollouts = 0

    def _on_step(self) -> bool:
        self.rewards.append(np.array([sum(info["reward_terms"].values()) for info in self.locals["infos"]]))
        return True

    def _on_rollout_end(self) -> None:
        np.testing.assert_allclose(self.locals["rollout_buffer"].rewards, self.rewards, rtol=1e-5)
        self.rewards.clear()
        self.rollouts += 1


def test_the_bonus_enters_before_the_advantages() -> None:
    advantages = Advantages()
    # An endless horizon: to the reward of a truncated step, PPO adds a value.
    env = make_vec(partial(Walker, horizon=10_000))
    make_model(env).learn(256, callback=[RNDCallback(learning_starts=40), advantages])
    assert advantages.rollouts == 4


class Rows(RNDCallback):
    """Counts what is learned from."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows = 0

    def _update(self, batch: torch.Tensor) -> Any:
        self.rows += len(batch)
        return super()._update(batch)


@pytest.mark.parametrize(("num_envs", "rate"), [(8, 1.0), (32, 1.0), (64, 0.5), (128, 0.25)])
def test_the_predictor_sees_its_share_of_the_data(num_envs: int, rate: float) -> None:
    callback = Rows(learning_starts=10, batch_size=1)
    make_model(make_vec(make_noise, num_envs), n_steps=16, n_epochs=1).learn(32 * num_envs, callback=callback)
    total = 32 * num_envs
    assert abs(callback.rows - rate * total) <= 4.0 * (total * rate * (1.0 - rate)) ** 0.5


def test_evaluation_changes_nothing() -> None:
    states = []
    for evaluate in (False, True):
        model = make_model(make_vec(make_noise))
        callbacks: list[BaseCallback] = [RNDCallback(learning_starts=50, batch_size=16)]
        if evaluate:
            callbacks.append(EvalCallback(make_vec(make_noise, 1), eval_freq=16, n_eval_episodes=2, verbose=0))
        model.learn(128, callback=callbacks)
        states.append({**state_of(model), "policy": dict(model.policy.state_dict())})
    assert same(*states)


def test_it_is_saved_and_resumed(tmp_path: Path) -> None:
    model = make_model(make_vec(make_noise))
    callback = RNDCallback(learning_starts=50, batch_size=16)
    model.learn(128, callback=callback)
    model.save(tmp_path / "model.zip")
    before = copy.deepcopy(state_of(model))
    assert before["training"]["updates"] == 8
    loaded = PPO.load(tmp_path / "model.zip", env=make_vec(make_noise), device="cpu")
    recorder = Recorder()
    loaded.learn(64, callback=[RNDCallback(learning_starts=50, batch_size=16), recorder])
    started = recorder.started
    assert started is not None
    # The unit of the first rollout is what was measured up to then; all else is as it was.
    assert float(started["rnd"]["unit"]) == pytest.approx(1.0 / callback.unit.scale.std)
    started["rnd"]["unit"] = before["rnd"]["unit"]
    assert same(started, before)
    assert recorder.column("count")[0] == before["rnd"]["standardizer.count"]


def test_training_goes_on_with_the_same_callback() -> None:
    model, callback = make_model(make_vec(make_noise)), RNDCallback(learning_starts=50, batch_size=16)
    model.learn(64, callback=callback)
    before = copy.deepcopy(callback.unit.state_dict())
    recorder = Recorder()
    model.learn(64, callback=[callback, recorder], reset_num_timesteps=False)
    assert recorder.started is not None
    assert same(recorder.started["training"]["unit"], before)


@pytest.mark.parametrize(
    ("algorithm", "observation", "action"),
    [
        (PPO, "box", "discrete"),
        (PPO, "dict", "box"),
        (PPO, "discrete", "multidiscrete"),
        (DQN, "discrete", "discrete"),
        (SAC, "dict", "box"),
    ],
)
def test_with_every_observation_on_and_off_policy(algorithm: Any, observation: str, action: str) -> None:
    recorder = Recorder()
    model = make_model(make_vec(partial(Walker, observation, action)), algorithm)
    model.learn(256, callback=[RNDCallback(learning_starts=20, batch_size=32), MetricsCallback(), recorder])
    assert model.persist.parts["rnd_training"].updates > 3  # type: ignore[attr-defined]
    assert (recorder.column("bonus")[-32:] > 0.0).all()


def make_wrapped() -> gym.Env[Any, Any]:
    return RNDBonus(InternalState(Monitor(Walker()), **LIMITS))


@pytest.fixture
def in_processes() -> Iterator[tuple[VecEnv, VecEnv]]:
    env = SubprocVecEnv([make_wrapped])
    yield DummyVecEnv([make_wrapped]), env
    env.close()


def test_in_worker_processes_it_is_the_same(in_processes: tuple[VecEnv, VecEnv]) -> None:
    states, bonuses = [], []
    for env in in_processes:
        model, recorder = make_model(env), Recorder()
        model.learn(192, callback=[RNDCallback(learning_starts=40, batch_size=16), recorder])
        states.append({**state_of(model), "policy": dict(model.policy.state_dict())})
        bonuses.append(recorder.column("bonus"))
    assert (bonuses[0][-1] > 0.0).all()
    np.testing.assert_array_equal(bonuses[0], bonuses[1])
    assert same(*states)


def test_internal_variables_can_be_left_out() -> None:
    env = VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS, sources={"battery": "obs[0]", "heat": "obs[1]"})
    model = make_model(VecRNDBonus(env))
    model.learn(64, callback=RNDCallback(ignore=["heat"], learning_starts=20))
    rnd = model.persist.parts["rnd"]  # type: ignore[attr-defined]
    observation = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    other, another = observation.copy(), observation.copy()
    other[0, 1] += 1.0
    another[0, 0] += 1.0
    novelty, same_novelty, more = (rnd.error(rnd.encode(o)) for o in (observation, other, another))
    assert novelty == same_novelty != more
    model = make_model(make_vec(Walker))
    with pytest.raises(RuntimeError, match=r"shows no internal variable 'heat'\. It shows: none"):
        model.learn(64, callback=RNDCallback(ignore=["heat"]))


def test_a_callback_without_its_layer_is_refused() -> None:
    model = make_model(VecInternalState(DummyVecEnv([make_noise]), **LIMITS))
    with pytest.raises(RuntimeError, match=r"wrap the environment in persist_sb3\.wrappers\.RNDBonus"):
        model.learn(64, callback=RNDCallback(learning_starts=10))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gamma": 1.0}, "gamma=1.0"),
        ({"schedule": "exp_1"}, "lin_0.5"),
        ({"learning_starts": 1}, "learning_starts=1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_wrong_parameters_are_refused_at_construction(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RNDCallback(**kwargs)


# Copies of environments


def test_a_copy_has_the_same_wrappers_and_its_own_randomness() -> None:
    def make() -> gym.Env[Any, Any]:
        env = InternalState(make_noise(), **LIMITS, sources={"battery": "obs[0]", "heat": "obs[1]"})
        return PartialObservation(env, hide=["heat"])

    with pytest.warns(UserWarning, match="already wrapped"):
        monitored = VecMonitor(DummyVecEnv([make] * 3))
    venv = VecNormalize(VecRNDBonus(monitored, weight=0.5))
    venv.seed(0)
    venv.reset()
    twin = remake(venv)
    assert isinstance(twin, VecRNDBonus) and twin.num_envs == 1
    assert twin.layer.weight == 0.5  # type: ignore[attr-defined]
    assert not twin.env_is_wrapped(Monitor)[0] and twin.env_is_wrapped(PartialObservation)[0]
    state = venv.venv.get_attr("np_random")[0].bit_generator.state
    twin.seed(1)
    first: Any = twin.reset()
    assert first[0, 1] == 0.0
    assert venv.venv.get_attr("np_random")[0].bit_generator.state == state


@pytest.mark.parametrize("inside", [False, True])
def test_a_copy_can_leave_out_what_replaces_actions(inside: bool) -> None:
    def make() -> gym.Env[Any, Any]:
        env = make_noise()
        return ActionShield(InternalState(env, **LIMITS)) if inside else env

    venv: VecEnv = DummyVecEnv([make])
    if not inside:
        venv = VecActionShield(VecInternalState(venv, **LIMITS))
    for intervening in (False, True):
        twin = remake(VecRNDBonus(venv), intervening=intervening)
        assert isinstance(twin, VecRNDBonus)
        guarded = twin.env_is_wrapped(ActionShield)[0] or isinstance(twin.venv, VecActionShield)
        assert guarded is intervening


def test_nobody_is_warned_of_a_copy_whose_shield_knows_nothing(recwarn: pytest.WarningsRecorder) -> None:
    venv = VecRNDBonus(VecActionShield(VecInternalState(DummyVecEnv([make_noise] * 2), **LIMITS)))
    make_model(venv).learn(64, callback=[ViabilityCallback(), RNDCallback(learning_starts=20)])
    assert not [warning for warning in recwarn if "ActionShield" in str(warning.message)]


@pytest.mark.parametrize(
    "venv",
    [
        DummyVecEnv([Walker]),
        VecFrameStack(DummyVecEnv([make_noise]), 2),
        DummyVecEnv([lambda: gym.wrappers.TimeLimit(Walker(), 5)]),
    ],
    ids=["not made by gymnasium.make", "a wrapper of others", "made by hand"],
)
def test_what_cannot_be_copied_is_not(venv: VecEnv) -> None:
    assert remake(venv) is None


# The configuration

CARTPOLE: dict[str, Any] = {
    "env": {"name": "CartPole-v1"},
    "internal_state": {"dims": ["x", "theta"], "mu": [0, 0], "source": {"x": "obs[0]", "theta": "obs[2]"}},
    "viability": {"constraints": ["abs(x) <= 2.0", "abs(theta) <= 0.15"]},
    "rewards": {"intrinsic": "rnd", "lambda_intr": 0.3, "lambda_homeo": 0.1},
}


def test_both_doors_of_the_configuration_have_it() -> None:
    config = PersistConfig.model_validate(CARTPOLE)
    entry = config.zoo_entry()
    assert "persist_sb3.callbacks.RNDCallback" in entry["callback"]
    vec = config.wrap_vec(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    wrapper: Any = get_wrapper_class(entry, "vec_env_wrapper")
    zoo = wrapper(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    for env in (vec, zoo):
        assert isinstance(env, VecRNDBonus)
        assert env.layer.weight == 0.3  # type: ignore[attr-defined]
    model = make_model(DummyVecEnv([lambda: config.make_env()]))
    recorder = Recorder()
    model.learn(64, callback=[*config.callbacks(), recorder])
    assert (recorder.column("bonus") > 0.0).all()
