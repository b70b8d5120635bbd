"""The replay buffers hold what a shield did, in every algorithm, against a ledger that the shield itself keeps."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rl_zoo3.utils import get_class_by_name
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from persist_sb3.buffers import (
    ExecutedActionDictReplayBuffer,
    ExecutedActionNStepDictReplayBuffer,
    ExecutedActionNStepReplayBuffer,
    ExecutedActionReplayBuffer,
    NStepDictReplayBuffer,
)

CONTINUOUS: list[Any] = [SAC, TD3, TQC]
DISCRETE: list[Any] = [DQN, QRDQN]
BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 1.0], np.float32))


class Wanderer(gym.Env[Any, Any]):
    """Shows noise, rewards with noise, and is cut off after 7 steps."""

    def __init__(self, action_space: spaces.Space[Any], nested: bool = False) -> None:
        sight = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = action_space
        self.observation_space = spaces.Dict({"a": sight, "b": sight}) if nested else sight
        self.nested = nested

    def _observe(self) -> Any:
        a, b = self.np_random.uniform(-1.0, 1.0, (2, 3)).astype(np.float32)
        return {"a": a, "b": b} if self.nested else a

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.time += 1
        return self._observe(), float(self.np_random.normal()), False, self.time == 7, {}


class Shield(VecEnvWrapper):
    """Executes a tame action in the place of every other proposal, and writes down both."""

    def __init__(self, venv: VecEnv, always_reports: bool = False) -> None:
        super().__init__(venv)
        self.always_reports = always_reports
        self.proposed: list[np.ndarray] = []
        self.executed: list[np.ndarray] = []
        self.reward: list[np.ndarray] = []
        self.count = 0

    def step_async(self, actions: np.ndarray) -> None:
        self.count += 1
        tame = np.zeros_like(actions) + (self.count // 2) % 2
        self.safe = np.where((self.count + np.arange(len(actions))) % 2 == 0, tame.T, actions.T).T
        self.safe = self.safe.astype(actions.dtype)
        self.proposed.append(np.array(actions))
        self.executed.append(self.safe)
        self.venv.step_async(self.safe)

    def step_wait(self) -> Any:
        observation, reward, done, infos = self.venv.step_wait()
        self.reward.append(np.array(reward))
        for slot, info in enumerate(infos):
            moved = bool((self.proposed[-1][slot] != self.safe[slot]).any())
            if self.always_reports:
                info["intervened"] = moved
            if moved or self.always_reports:
                info["executed_action"] = self.safe[slot]
        return observation, reward, done, infos

    def reset(self) -> Any:
        return self.venv.reset()


def make(n: int = 2, continuous: bool = True, nested: bool = False, **kwargs: Any) -> Shield:
    action_space = BOX if continuous else spaces.Discrete(4)
    return Shield(DummyVecEnv([partial(Wanderer, action_space, nested) for _ in range(n)]), **kwargs)


def train(algorithm: Any, env: VecEnv, steps: int = 60, buffer: Any = None, **kwargs: Any) -> BaseAlgorithm:
    nested = isinstance(env.observation_space, spaces.Dict)
    if buffer is None:
        buffer = ExecutedActionDictReplayBuffer if nested else ExecutedActionReplayBuffer
    model: BaseAlgorithm = algorithm(
        "MultiInputPolicy" if nested else "MlpPolicy",
        env,
        policy_kwargs={"net_arch": [4]},
        learning_starts=20,
        buffer_size=1000,
        batch_size=16,
        train_freq=4,
        seed=0,
        device="cpu",
        replay_buffer_class=buffer,
        replay_buffer_kwargs=kwargs,
    )
    return model.learn(steps)


def stored(actions: list[np.ndarray], continuous: bool) -> np.ndarray:
    """
    :return: actions as SB3 keeps them, ``(T, n, A)``
    """
    rows = np.array(actions)
    if not continuous:
        return rows[..., None]
    return 2.0 * (rows - BOX.low) / (BOX.high - BOX.low) - 1.0


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("algorithm", CONTINUOUS + DISCRETE)
def test_every_algorithm_learns_from_what_was_executed(algorithm: Any, n: int) -> None:
    continuous = algorithm in CONTINUOUS
    env = make(n, continuous, nested=algorithm in (TD3, QRDQN), always_reports=n == 3)
    model: Any = train(algorithm, env)
    buffer = model.replay_buffer
    assert buffer.pos == len(env.executed) >= 20
    executed, proposed = stored(env.executed, continuous), stored(env.proposed, continuous)
    np.testing.assert_allclose(buffer.actions[: buffer.pos], executed, atol=2e-5)
    np.testing.assert_array_equal(buffer.rewards[: buffer.pos], np.array(env.reward, np.float32))
    moved = (executed != proposed).any(axis=2)
    assert buffer.interventions == moved.sum() > 0
    # What was not replaced keeps its very bits.
    np.testing.assert_allclose(buffer.actions[: buffer.pos][~moved], proposed[~moved], atol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("algorithm", CONTINUOUS + DISCRETE)
def test_proposals_pay(algorithm: Any, n: int) -> None:
    continuous = algorithm in CONTINUOUS
    env = make(n, continuous, nested=algorithm in (SAC, DQN))
    model: Any = train(algorithm, env, learn_from="proposed", intervention_penalty=2.5)
    buffer = model.replay_buffer
    executed, proposed = stored(env.executed, continuous), stored(env.proposed, continuous)
    moved = (executed != proposed).any(axis=2)
    np.testing.assert_allclose(buffer.actions[: buffer.pos], proposed, atol=1e-6)
    np.testing.assert_allclose(buffer.rewards[: buffer.pos], np.array(env.reward) - 2.5 * moved, atol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("algorithm", CONTINUOUS + DISCRETE)
def test_both_are_true_of_the_shielded_process(algorithm: Any, n: int) -> None:
    continuous = algorithm in CONTINUOUS
    nested = algorithm in (TQC, QRDQN)
    env = make(n, continuous, nested)
    model: Any = train(algorithm, env, learn_from="both", intervention_penalty=2.5)
    executed, proposed = stored(env.executed, continuous), stored(env.proposed, continuous)
    count = 4000
    samples = model.replay_buffer.sample(count)
    assert samples.actions.shape == (count, executed.shape[2])
    assert samples.actions.dtype == (torch.float32 if continuous else torch.int64)
    # Rewards are continuous noise, so each tells its step, and whether it paid.
    rewards = np.ravel(env.reward)
    distance = np.abs(samples.rewards.numpy() - np.concatenate([rewards, rewards - 2.5]))
    nearest = distance.argmin(axis=1)
    paid, step = nearest >= len(rewards), nearest % len(rewards)
    assert distance.min(axis=1).max() < 1e-5
    executed, proposed = (rows.reshape(-1, rows.shape[2]) for rows in (executed, proposed))
    moved = (executed != proposed).any(axis=1)
    seen = moved[step]
    assert seen[paid].all()
    expected = np.where(paid[:, None], proposed[step], executed[step])
    np.testing.assert_allclose(samples.actions.numpy(), expected, atol=2e-5)
    # An intervened step is sampled as often as any other, and half of the time as a proposal.
    share = moved.mean()
    assert abs(seen.mean() - share) < 4 * np.sqrt(share * (1 - share) / count)
    assert abs(paid.sum() / seen.sum() - 0.5) < 4 * np.sqrt(0.25 / seen.sum())


def test_penalty_is_normalised_as_rewards_are() -> None:
    env = make(2)
    normalised = VecNormalize(env, norm_obs=False, clip_reward=100.0)
    model: Any = train(SAC, normalised, learn_from="both", intervention_penalty=2.5)
    scale = np.sqrt(normalised.ret_rms.var + normalised.epsilon)
    possible = np.ravel(env.reward) / scale
    rewards = model.replay_buffer.sample(500, env=normalised).rewards.ravel().numpy()
    distance = np.abs(rewards[:, None] - np.concatenate([possible, possible - 2.5 / scale])).min(axis=1)
    np.testing.assert_allclose(distance, 0.0, atol=1e-5)


def n_step_return(rewards: np.ndarray, ends: np.ndarray, start: int, gamma: float, n: int) -> float:
    total = 0.0
    for k in range(n):
        if start + k == len(rewards):
            break
        total += gamma**k * rewards[start + k]
        if ends[start + k]:
            break
    return total


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("learn_from", ["executed", "proposed", "both"])
def test_n_step_returns(learn_from: Any, nested: bool) -> None:
    gamma, penalty = 0.9, 0.0 if learn_from == "executed" else 2.5
    env = make(1, nested=nested)
    kwargs = {"n_steps": 3, "gamma": gamma, "learn_from": learn_from, "intervention_penalty": penalty}
    buffer = ExecutedActionNStepDictReplayBuffer if nested else ExecutedActionNStepReplayBuffer
    model: Any = train(SAC, env, buffer=buffer, **kwargs)
    executed, proposed = stored(env.executed, True)[:, 0], stored(env.proposed, True)[:, 0]
    moved = (executed != proposed).any(axis=1)
    rewards = np.ravel(env.reward) - penalty * moved * (learn_from == "proposed")
    ends = np.arange(1, len(rewards) + 1) % 7 == 0
    returns = np.array([n_step_return(rewards, ends, start, gamma, 3) for start in range(len(rewards))])
    actions = proposed if learn_from == "proposed" else executed
    known = [(actions, returns)]
    if learn_from == "both":
        known.append((proposed[moved], returns[moved] - penalty))
    rows = np.concatenate([np.column_stack([action, value]) for action, value in known])
    samples = model.replay_buffer.sample(1500)
    drawn = np.column_stack([samples.actions.numpy(), samples.rewards.numpy()])
    distance = np.abs(drawn[:, None] - rows).max(axis=2)
    assert distance.min(axis=1).max() < 1e-4
    assert len(np.unique(distance.argmin(axis=1))) > 0.95 * len(rows)


@pytest.mark.parametrize("steps", [4, 11, 30])
@pytest.mark.parametrize("n_steps", [1, 3, 8])
@pytest.mark.parametrize("normalised", [False, True])
def test_n_steps_of_dict_observations_are_those_that_sb3_makes_of_flat_ones(
    steps: int, n_steps: int, normalised: bool
) -> None:
    sight, n = spaces.Box(-np.inf, np.inf, (2,), np.float32), 3
    kwargs: dict[str, Any] = {"n_envs": n, "device": "cpu", "n_steps": n_steps, "gamma": 0.9}
    flat = NStepReplayBuffer(12 * n, sight, BOX, **kwargs)
    nested = NStepDictReplayBuffer(12 * n, spaces.Dict({"a": sight}), BOX, **kwargs)
    generator = np.random.default_rng(steps)
    for _ in range(steps):
        seen, following, actions = generator.standard_normal((3, n, 2)).astype(np.float32)
        reward, cut = generator.standard_normal(n), generator.random(n) < 0.1
        done = cut | (generator.random(n) < 0.1)
        infos = [{"TimeLimit.truncated": bool(each)} for each in cut]
        flat.add(seen, following, actions, reward, done, infos)
        nested.add({"a": seen}, {"a": following}, actions, reward, done, infos)

    def drawn(buffer: ReplayBuffer, dictionary: bool) -> dict[str, Any]:
        env = VecNormalize(make(n, nested=dictionary), norm_obs=False, gamma=0.9) if normalised else None
        if env is not None:
            env.ret_rms.var = np.array(4.0)
        np.random.seed(0)  # noqa: NPY002
        return buffer.sample(200, env=env)._asdict()

    of_flat, of_nested = drawn(flat, False), drawn(nested, True)
    for key, expected in of_flat.items():
        found = of_nested[key]["a"] if "observations" in key else of_nested[key]
        assert found.dtype == expected.dtype, key
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("learn_from", ["executed", "proposed"])
def test_a_shield_that_never_intervenes_changes_nothing(learn_from: Any) -> None:
    class Idle(Shield):
        def step_async(self, actions: np.ndarray) -> None:
            super().step_async(actions)
            self.safe = self.executed[-1] = self.proposed[-1]
            self.venv.step_async(self.safe)

    models = []
    for buffer, kwargs in ((ReplayBuffer, {}), (ExecutedActionReplayBuffer, {"learn_from": learn_from})):
        env = Idle(make(2).venv, always_reports=True)
        models.append(train(SAC, env, buffer=buffer, **kwargs))
    plain, shielded = (model.replay_buffer for model in models)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(shielded.actions, plain.actions)
    np.testing.assert_array_equal(shielded.rewards, plain.rewards)
    for one, other in zip(models[0].policy.parameters(), models[1].policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("learn_from", ["executed", "both"])
@pytest.mark.parametrize("nested", [False, True])
def test_saved_and_loaded(learn_from: Any, nested: bool, tmp_path: Path) -> None:
    env = make(3, nested=nested)
    model: Any = train(SAC, env, learn_from=learn_from)
    model.save_replay_buffer(tmp_path / "buffer")
    other: Any = train(SAC, make(3, nested=nested), learn_from="proposed")
    other.load_replay_buffer(tmp_path / "buffer")
    assert type(other.replay_buffer) is type(model.replay_buffer)
    assert other.replay_buffer.learn_from == learn_from
    np.testing.assert_array_equal(other.replay_buffer.actions, model.replay_buffer.actions)
    position = other.replay_buffer.pos
    other.learn(36, reset_num_timesteps=False)
    assert other.replay_buffer.pos == position + 12


def test_the_zoo_finds_the_classes() -> None:
    for name in ("", "Dict", "NStep", "NStepDict"):
        path = f"persist_sb3.buffers.ExecutedAction{name}ReplayBuffer"
        assert issubclass(get_class_by_name(path), ReplayBuffer)


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(2)])
def test_other_action_spaces(space: spaces.Space[Any]) -> None:
    sight = spaces.Box(-1.0, 1.0, (1,), np.float32)
    buffer = ExecutedActionReplayBuffer(8, sight, space, device="cpu", n_envs=2, learn_from="both")
    ones = np.ones((2, 1), np.float32)
    infos: list[dict[str, Any]] = [{"executed_action": np.array([0, 1])}, {"TimeLimit.truncated": False}]
    buffer.add(ones, ones, np.array([[1, 1], [1, 0]]), np.zeros(2), np.zeros(2), infos)
    np.testing.assert_array_equal(buffer.actions[0], [[0, 1, 1, 1, 1], [1, 0, 1, 0, 0]])


def test_bad_parameters_are_named() -> None:
    sight = spaces.Box(-1.0, 1.0, (1,), np.float32)
    nested = spaces.Dict({"a": sight})
    make = partial(ExecutedActionReplayBuffer, 8, sight, BOX)
    with pytest.raises(TypeError, match="learn_from='all' must be one of 'executed', 'proposed', 'both'"):
        make(learn_from="all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="intervention_penalty=-1 must be at least 0"):
        make(learn_from="both", intervention_penalty=-1)
    with pytest.raises(TypeError, match="would punish the executed, safe action"):
        make(intervention_penalty=1.0)
    with pytest.raises(TypeError, match="use ExecutedActionDictReplayBuffer"):
        ExecutedActionReplayBuffer(8, nested, BOX)
    with pytest.raises(TypeError, match="use ExecutedActionReplayBuffer"):
        ExecutedActionDictReplayBuffer(8, sight, BOX)
    with pytest.raises(TypeError, match="use ExecutedActionNStepDictReplayBuffer"):
        ExecutedActionNStepReplayBuffer(8, nested, BOX)
    with pytest.raises(TypeError, match="n_steps=0 must be at least 1"):
        ExecutedActionNStepDictReplayBuffer(8, nested, BOX, n_steps=0)
    with pytest.raises(TypeError, match=r"gamma=1.5 must be in \[0, 1\], and that of the algorithm"):
        NStepDictReplayBuffer(8, nested, BOX, gamma=1.5)


@pytest.mark.parametrize("action", [[4.0, 0.5], [np.nan, 0.5]])
def test_an_action_outside_of_the_space_is_refused(action: list[float]) -> None:
    buffer = ExecutedActionReplayBuffer(8, spaces.Box(-1.0, 1.0, (1,), np.float32), BOX, device="cpu", n_envs=2)
    ones = np.ones((2, 1), np.float32)
    infos: list[dict[str, Any]] = [{}, {"executed_action": np.array(action)}]
    with pytest.raises(
        RuntimeError, match=r"info\['executed_action'\] of environment 1 is .*units of the action space"
    ):
        buffer.add(ones, ones, np.zeros((2, 2), np.float32), np.zeros(2), np.zeros(2), infos)
