"""Replay buffers that pay bonuses by the models of the moment, against the models themselves and SB3's own buffers."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from persist_sb3.batch import tree_map
from persist_sb3.buffers import (
    ExecutedActionRecomputedBonusDictReplayBuffer,
    ExecutedActionRecomputedBonusReplayBuffer,
    RecomputedBonusDictReplayBuffer,
    RecomputedBonusReplayBuffer,
)
from persist_sb3.buffers.transitions import Transitions
from persist_sb3.callbacks import (
    CurriculumCallback,
    EmpowermentCallback,
    LagrangeCallback,
    MetricsCallback,
    RNDCallback,
    WorldModelCallback,
    world_model,
)
from persist_sb3.intrinsic import Moves, Surprise
from persist_sb3.wrappers import (
    InternalState,
    RNDBonus,
    SMiRLBonus,
    SurpriseBonus,
    VecCostPenalty,
    VecEmpowermentBonus,
    VecHomeostatReward,
    VecInternalState,
    VecRNDBonus,
    VecSMiRLBonus,
    VecSurpriseBonus,
)
from tests.learners import Ledger, train_entry
from tests.toys import Walker

LIMITS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"], "mu": [0.8, 0.5]}
SMALL: dict[str, Any] = {"net_arch": [16], "members": 2, "learning_starts": 64, "batch_size": 32, "train_freq": 2}
QUICK: dict[str, Any] = {"learning_starts": 20, "batch_size": 16, "learning_rate": 0.01}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit of surprise is measured on fewer scores."""
    monkeypatch.setattr(world_model, "ENOUGH", 60)


def make_env(observation: str = "box", action: str = "box", n: int = 2, surprise: bool = False) -> VecEnv:
    env: VecEnv = VecInternalState(DummyVecEnv([partial(Walker, observation, action)] * n), **LIMITS)
    env = VecRNDBonus(env, weight=0.7)
    return VecSurpriseBonus(env, weight=2.0, beta=0.5) if surprise else env


def make_model(env: VecEnv, buffer: Any = None, algorithm: Any = SAC, **kwargs: Any) -> BaseAlgorithm:
    nested = isinstance(env.observation_space, spaces.Dict)
    if buffer is None:
        buffer = RecomputedBonusDictReplayBuffer if nested else RecomputedBonusReplayBuffer
    model: BaseAlgorithm = algorithm(
        "MultiInputPolicy" if nested else "MlpPolicy",
        env,
        policy_kwargs={"net_arch": [8]},
        learning_starts=40,
        buffer_size=1000,
        batch_size=16,
        train_freq=8,
        gradient_steps=1,
        seed=0,
        device="cpu",
        replay_buffer_class=buffer,
        replay_buffer_kwargs=kwargs,
    )
    return model


def train(env: VecEnv, *callbacks: BaseCallback, steps: int = 200, **kwargs: Any) -> tuple[Any, Any, Ledger]:
    ledger = Ledger()
    model: Any = make_model(env, **kwargs)
    model.learn(steps, callback=[ledger, *callbacks])
    return model, model.replay_buffer, ledger


def everything(buffer: Any) -> tuple[np.ndarray, np.ndarray]:
    rows, slots = np.divmod(np.arange(buffer.size() * buffer.n_envs), buffer.n_envs)
    return rows, slots


@pytest.mark.parametrize(
    ("observation", "action", "algorithm", "n"),
    [("box", "box", SAC, 1), ("dict", "box", SAC, 3), ("discrete", "discrete", DQN, 2), ("dict", "discrete", DQN, 1)],
)
def test_the_reward_is_split_and_put_together_anew(observation: str, action: str, algorithm: Any, n: int) -> None:
    env = make_env(observation, action, n, surprise=True)
    model, buffer, ledger = train(env, RNDCallback(**QUICK), WorldModelCallback(**SMALL), algorithm=algorithm)
    size = buffer.size()
    paid = ledger.stack("terms")["intrinsic"]
    np.testing.assert_allclose(buffer.bonuses[:size], paid, rtol=1e-6)
    np.testing.assert_allclose(buffer.rewards[:size], ledger.stack("reward") - paid, atol=1e-4)
    # By the models themselves, transition after transition.
    parts = model.persist.bundle()
    rnd, unit, expected = parts["rnd"], float(parts["surprise"].value), []
    assert unit > 0.0
    for step in ledger.steps:
        moves = Moves(step.observation, step.internal, step.executed_action, step.next_observation, step.next_internal)
        nll = Surprise().surprise(parts, moves)
        distance = np.square(step.next_internal - [0.8, 0.5]).sum(axis=1)
        novelty = rnd.error(rnd.encode(step.next_observation))
        expected.append(0.7 * float(rnd.unit) * novelty + 2.0 * unit * (-nll - 0.5 * distance))
    np.testing.assert_allclose(buffer.bonus(*everything(buffer)).reshape(size, n), expected, rtol=1e-3, atol=1e-5)
    assert not np.allclose(buffer.bonuses[:size], expected, rtol=0.01)
    rows, slots = np.array([3, size - 1]), np.array([0, n - 1])
    np.random.seed(1)  # noqa: NPY002
    samples = buffer._get_samples(rows)
    np.random.seed(1)  # noqa: NPY002
    slots = np.random.randint(0, n, 2)  # noqa: NPY002
    rest = ledger.stack("reward") - paid
    np.testing.assert_allclose(
        samples.rewards[:, 0], rest[rows, slots] + np.array(expected)[rows, slots], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("observation", ["box", "dict", "discrete"])
def test_but_for_the_reward_a_batch_is_that_of_sb3(observation: str) -> None:
    samples = []
    for buffer in (None, DictReplayBuffer if observation == "dict" else ReplayBuffer):
        # Without gradient steps, so that the policy is the same whatever it is paid.
        env = make_env(observation, "discrete")
        model = make_model(env, buffer, DQN)
        model.learning_starts = 10_000  # type: ignore[attr-defined]
        model.learn(150, callback=RNDCallback(**QUICK))
        np.random.seed(7)  # noqa: NPY002
        samples.append(model.replay_buffer.sample(64))  # type: ignore[attr-defined]
    for ours, theirs in zip(*samples, strict=True):
        if isinstance(ours, dict):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
        elif ours is not samples[0].rewards and ours is not None:
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert samples[0].rewards.shape == samples[1].rewards.shape
    assert samples[0].rewards.dtype == samples[1].rewards.dtype


def flat(venv: VecEnv, observation: Any) -> np.ndarray:
    """
    :return: what gymnasium makes of each environment's observation, ``(n, D)``
    """
    rows = [tree_map(lambda leaf, i=i: leaf[i], observation) for i in range(venv.num_envs)]
    return np.array([spaces.flatten(venv.observation_space, row) for row in rows])


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_empowerment_is_that_of_the_network_asked_now(observation: str) -> None:
    venv = VecInternalState(DummyVecEnv([partial(Walker, observation, "box")] * 2), **LIMITS, append=True)
    callback = EmpowermentCallback(min_updates=2, warm_up=2, learning_starts=8, batch_size=16, train_freq=4)
    world = WorldModelCallback(**SMALL)
    _, buffer, ledger = train(VecEmpowermentBonus(venv, weight=0.5), world, callback)
    model = callback.actor
    expected = []
    for step in ledger.steps:
        rows = flat(venv, step.next_observation)
        state = torch.as_tensor(np.concatenate([rows, step.next_internal], axis=1), dtype=torch.float32)
        with torch.no_grad():
            nats = model(state).clamp(0.0, model.bound)
        expected.append(0.5 * float(model.unit) * nats.numpy())
    assert float(model.unit) > 0.0 and np.max(expected) > 0.0
    np.testing.assert_allclose(
        buffer.bonus(*everything(buffer)).reshape(buffer.size(), 2), expected, rtol=1e-3, atol=1e-5
    )
    # At first nothing was paid.
    np.testing.assert_array_equal(buffer.bonuses[:8], 0.0)


def test_the_stage_of_a_curriculum_counts_too() -> None:
    stages = [{"steps": 80, "intr_factor": 0.25}]
    curriculum, rnd = CurriculumCallback(stages), RNDCallback(**QUICK)
    model, buffer, ledger = train(make_env(), curriculum, rnd, steps=64)
    novelty = model.persist.parts["rnd"]
    for share in (0.25, 1.0):
        expected = [
            share * 0.7 * float(novelty.unit) * novelty.error(novelty.encode(step.next_observation))
            for step in ledger.steps
        ]
        np.testing.assert_allclose(buffer.bonus(*everything(buffer)).reshape(-1, 2), expected, rtol=1e-5)
        curriculum.in_force.stage.fill_(1)


def test_what_has_been_learned_since_is_no_longer_new() -> None:
    env = make_env()
    # Frequent learning at a high rate: what is novel is not for long.
    model, buffer, _ = train(env, RNDCallback(**QUICK | {"gradient_steps": 8}), steps=600)
    unit = float(model.persist.parts["rnd"].unit)
    assert buffer.bonus(*everything(buffer)).mean() < 0.5 * buffer.bonuses[: buffer.size()].mean()
    model.persist.parts["rnd"].unit.fill_(3.0 * unit)
    tripled = buffer.bonus(*everything(buffer)).mean()
    model.persist.parts["rnd"].unit.fill_(unit)
    assert tripled == pytest.approx(3.0 * buffer.bonus(*everything(buffer)).mean())


def test_the_sum_is_normalised_as_a_whole() -> None:
    env = VecNormalize(make_env(), norm_obs=True)
    _, buffer, ledger = train(env, RNDCallback(**QUICK))
    rows, _ = everything(buffer)
    rest = ledger.stack("reward") - ledger.stack("terms")["intrinsic"]
    np.testing.assert_allclose(buffer.rewards[: buffer.size()], rest, atol=1e-5)
    np.random.seed(3)  # noqa: NPY002
    drawn = np.random.randint(0, 2, len(rows))  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    samples = buffer._get_samples(rows, env)
    raw = buffer.rewards[rows, drawn] + buffer.bonus(rows, drawn)
    np.testing.assert_allclose(samples.rewards[:, 0], env.normalize_reward(raw), rtol=1e-4)
    white: Any = env.normalize_obs(buffer.next_observations[rows, drawn])
    np.testing.assert_allclose(samples.next_observations, white, rtol=1e-5)


def make_wrapped() -> gym.Env[Any, Any]:
    return SurpriseBonus(RNDBonus(InternalState(Walker("dict", "box"), **LIMITS), weight=0.5), weight=0.25)


def test_layers_inside_worker_processes_are_found() -> None:
    bonuses = []
    for kind in (DummyVecEnv, SubprocVecEnv):
        env = kind([make_wrapped])
        _, buffer, _ = train(env, RNDCallback(**QUICK), WorldModelCallback(**SMALL), steps=160)
        env.close()
        assert [weight for weight, _ in buffer._paid] == [0.5, 0.25]
        bonuses.append(buffer.bonus(*everything(buffer)))
    np.testing.assert_array_equal(*bonuses)
    assert (bonuses[0] != 0.0).all()


def test_it_is_saved_without_the_models_and_resumed_with_them(tmp_path: Path) -> None:
    model, buffer, _ = train(make_env(), RNDCallback(**QUICK))
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    before = buffer.bonus(*everything(buffer))
    loaded = SAC.load(tmp_path / "model.zip", env=make_env(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    kept: Any = loaded.replay_buffer
    np.testing.assert_array_equal(kept.rewards, buffer.rewards)
    with pytest.raises(RuntimeError, match="bound when training begins"):
        kept.sample(4)
    loaded.learn(8, callback=RNDCallback(**QUICK | {"batch_size": 1000}), reset_num_timesteps=False)
    rows, slots = everything(buffer)
    after = kept.bonus(rows, slots)
    # The same networks; the unit is what it is at the beginning of the next rollout.
    np.testing.assert_allclose(after / before, (after / before)[0], rtol=1e-5)
    assert kept.pos == buffer.pos + 8


class Halved(VecEnvWrapper):
    """Executes half of what is proposed."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.executed = 0.5 * actions
        self.venv.step_async(self.executed)

    def step_wait(self) -> Any:
        result = self.venv.step_wait()
        for info, executed in zip(result[3], self.executed, strict=True):
            info["executed_action"] = executed
        return result


def test_with_executed_actions() -> None:
    env = Halved(make_env(surprise=True))
    penalty: dict[str, Any] = {"learn_from": "both", "intervention_penalty": 2.5}
    callbacks = [RNDCallback(**QUICK), WorldModelCallback(**SMALL)]
    _, buffer, ledger = train(env, *callbacks, buffer=ExecutedActionRecomputedBonusReplayBuffer, **penalty)
    assert buffer.interventions > 100
    samples = buffer.sample(500)
    fresh = buffer.rewards[: buffer.size()] + buffer.bonus(*everything(buffer)).reshape(-1, 2)
    distance = np.abs(samples.rewards.numpy() - np.concatenate([fresh.ravel(), fresh.ravel() - 2.5]))
    assert distance.min(axis=1).max() < 1e-4
    paid = distance.argmin(axis=1) >= fresh.size
    assert 0.4 < paid.mean() < 0.6
    # What is scored is what was done, so by the same models it is what the layer would say.
    moved = ledger.stack("executed_action")
    np.testing.assert_allclose(moved, 0.5 * ledger.stack("action"))
    np.testing.assert_array_equal(buffer._done_actions[: buffer.size()], moved)


ENTRY = """
  n_envs: 2
  n_timesteps: 128
  policy: {policy}
  policy_kwargs: {{net_arch: [8]}}
  buffer_size: 200
  learning_starts: 64
  train_freq: 4
  gradient_steps: 1
  batch_size: 16
  replay_buffer_class: "get_class_by_name('persist_sb3.buffers.{buffer}')"
  vec_env_wrapper:
    - persist_sb3.wrappers.VecInternalState
    - persist_sb3.wrappers.VecRNDBonus: {{weight: 0.7}}
{layer}
  callback:
    - persist_sb3.callbacks.MetricsCallback
    - persist_sb3.callbacks.RNDCallback: {{net_arch: [8], features: 4, learning_starts: 20, batch_size: 16}}
{callback}
"""
SHIELD = {
    "layer": "    - persist_sb3.wrappers.VecActionShield: {fallback: 0}",
    "callback": "    - persist_sb3.callbacks.ViabilityCallback: {net_arch: [8], batch_size: 16, learning_starts: 64}",
}


@pytest.mark.parametrize("shielded", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_hyperparameter_files_train_with_them(nested: bool, shielded: bool, tmp_path: Path) -> None:
    name = f"{'ExecutedAction' if shielded else ''}RecomputedBonus{'Dict' if nested else ''}ReplayBuffer"
    env_id, policy = ("GridLife-v0", "MultiInputPolicy") if nested else ("GridLifeFlat-v0", "MlpPolicy")
    shield = SHIELD if shielded else dict.fromkeys(SHIELD, "")
    model = train_entry("dqn", env_id, ENTRY.format(policy=policy, buffer=name, **shield), tmp_path)
    buffer = model.replay_buffer
    assert type(buffer).__name__ == name
    assert model.num_timesteps == 128 and model._n_updates >= 5
    # Paid once the error's unit is known, and again by what has been learned since.
    rows, slots = everything(buffer)
    paid, now = buffer.bonuses[rows, slots], buffer.bonus(rows, slots)
    assert paid[-20:].min() > 0.0 and now.min() > 0.0
    assert not np.allclose(paid[-20:], now[-20:])
    if shielded:
        # Until the critic can be trusted the shield has the agent stay, whatever it proposes.
        assert set(buffer._done_actions[rows, slots].ravel()) == {0}


def test_wrong_wiring_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"no callback has bound it: train with the layer's callback"):
        make_model(make_env()).learn(8)
    bare = VecInternalState(DummyVecEnv([partial(Walker, "box", "box")]), **LIMITS)
    with pytest.raises(RuntimeError, match="there are none: wrap the environment in RNDBonus, SurpriseBonus or"):
        make_model(bare).learn(8, callback=MetricsCallback())
    inner = VecInternalState(DummyVecEnv([partial(Walker, "box", "box")]), **LIMITS)
    whole_episode = VecRNDBonus(VecSMiRLBonus(inner))
    with pytest.raises(RuntimeError, match="cannot recompute the bonus of SMiRLBonus"):
        make_model(whole_episode).learn(8, callback=RNDCallback(**QUICK))
    inside = DummyVecEnv([lambda: SMiRLBonus(InternalState(Walker("box", "box"), **LIMITS))])
    with pytest.raises(RuntimeError, match="cannot recompute the bonus of SMiRLBonus"):
        make_model(inside).learn(8, callback=MetricsCallback())


@pytest.mark.parametrize(
    ("buffer", "observation", "kwargs", "message"),
    [
        (RecomputedBonusReplayBuffer, "dict", {}, "with 'Dict' in its name"),
        (RecomputedBonusDictReplayBuffer, "box", {}, "without 'Dict' in its name"),
        (ExecutedActionRecomputedBonusDictReplayBuffer, "box", {}, "ReplayBuffer"),
        (
            RecomputedBonusReplayBuffer,
            "box",
            {"optimize_memory_usage": True, "handle_timeout_termination": False},
            "optimize_memory_usage",
        ),
    ],
)
def test_wrong_parameters_are_refused(buffer: Any, observation: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_model(make_env(observation), buffer, **kwargs)


LED: dict[str, Any] = {**LIMITS, "constraints": ["battery >= 0.5"], "low": [-0.5, 0.0], "high": [1.0, 1.0]}


def make_led(scales: str, bonus: bool = False) -> VecEnv:
    env: VecEnv = VecInternalState(DummyVecEnv([partial(Walker, "box", "box")] * 2), **LED)
    env = VecCostPenalty(env) if scales == "cost" else VecHomeostatReward(env, alive_bonus="auto", weight=0.5)
    return VecRNDBonus(env, weight=0.7) if bonus else env


def by_hand(scales: str, steps: list[Transitions]) -> np.ndarray:
    """
    :return: each term at a weight of 1
    """
    if scales == "cost":
        return np.array([-(step.next_internal[:, 0] < 0.5).astype(float) for step in steps])
    # The greatest deviation inside the constraints is that of a corner, and no step there may cost anything.
    worst = max((battery - 0.8) ** 2 + (heat - 0.5) ** 2 for battery in (0.5, 1.0) for heat in (0.0, 1.0))
    deviation = [np.square(step.next_internal - [0.8, 0.5]).sum(axis=1) for step in steps]
    return np.array([worst * (step.cost == 0.0) - far for step, far in zip(steps, deviation, strict=True)])


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("scales", ["cost", "homeostat"])
def test_a_multiplier_is_that_of_the_moment(scales: Any, bonus: bool) -> None:
    lagrange = LagrangeCallback(0.0, per="step", scales=scales, ki=1.0, update_freq=16)
    model, buffer, ledger = train(make_led(scales, bonus), lagrange, *[RNDCallback(**QUICK)] * bonus)
    size, name = buffer.size(), {"cost": "cost", "homeostat": "homeo"}[scales]
    whole, then = by_hand(scales, ledger.steps), ledger.stack("terms")[name]
    # It has moved: what was paid differs from what is paid for the same now.
    value = float(model.persist.parts["lagrange"].value)
    assert value > 0.2 and not np.allclose(then, value * whole, rtol=0.1)
    paid = then + (ledger.stack("terms")["intrinsic"] if bonus else 0.0)
    np.testing.assert_allclose(buffer.bonuses[:size], paid, atol=1e-5)
    np.testing.assert_allclose(buffer.rewards[:size], ledger.stack("reward") - paid, atol=1e-4)
    for now in (value, 0.0, 7.0):
        model.persist.parts["lagrange"].value.fill_(now)
        expected = now * whole
        if bonus:
            rnd = model.persist.parts["rnd"]
            seen = ledger.stack("next_observation").reshape(2 * size, -1)
            expected += 0.7 * float(rnd.unit) * rnd.error(rnd.encode(seen)).reshape(size, 2)
        np.testing.assert_allclose(buffer.bonus(*everything(buffer)).reshape(size, 2), expected, rtol=1e-4, atol=1e-5)


def test_the_weight_of_the_homeostat_is_that_of_the_stage() -> None:
    curriculum = CurriculumCallback([{"steps": 40, "homeo_factor": 0.0}, {"steps": 1000, "homeo_factor": 0.25}])
    _, buffer, ledger = train(make_led("homeostat"), curriculum)
    whole = 0.5 * by_hand("homeostat", ledger.steps)
    np.testing.assert_allclose(buffer.bonuses[:20], 0.0, atol=1e-6)
    for stage, factor in enumerate([0.0, 0.25, 1.0]):
        curriculum.in_force.stage.fill_(stage)
        np.testing.assert_allclose(
            buffer.bonus(*everything(buffer)).reshape(-1, 2), factor * whole, rtol=1e-4, atol=1e-6
        )


def test_a_multiplier_is_needed_again_when_training_goes_on(tmp_path: Path) -> None:
    model, buffer, _ = train(make_led("cost"), LagrangeCallback(0.0, per="step", update_freq=16))
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    before = buffer.bonus(*everything(buffer))
    assert (before < 0.0).any()
    for callback in (LagrangeCallback(0.0, per="step", update_freq=10_000), MetricsCallback()):
        loaded: Any = SAC.load(tmp_path / "model.zip", env=make_led("cost"), device="cpu")
        loaded.load_replay_buffer(tmp_path / "buffer.pkl")
        if isinstance(callback, MetricsCallback):
            with pytest.raises(RuntimeError, match="there are none"):
                loaded.learn(8, callback=callback, reset_num_timesteps=False)
            with pytest.raises(RuntimeError, match="go on with the same LagrangeCallback"):
                loaded.replay_buffer.sample(4)
        else:
            loaded.learn(8, callback=callback, reset_num_timesteps=False)
            np.testing.assert_allclose(loaded.replay_buffer.bonus(*everything(buffer)), before, rtol=1e-6)
