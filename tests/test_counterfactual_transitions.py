"""Transitions with other internal variables, and a critic that learns from them: against closed forms."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from persist_sb3.batch import tree_map
from persist_sb3.buffers import CounterfactualTransitions, Transitions
from persist_sb3.buffers.transitions import as_batch
from persist_sb3.callbacks import MetricsCallback, ViabilityCallback
from persist_sb3.models.spec import StateSpec
from persist_sb3.recording import record
from persist_sb3.wrappers import VecActionShield, VecInternalState, VecPartialObservation
from tests.test_counterfactuals import HIDDEN, walkers
from tests.test_viability_callback import Tank


def tanks() -> VecEnv:
    """
    :return: what is never emptied below a third, and must not be emptied below a tenth
    """
    return VecInternalState(
        DummyVecEnv([Tank] * 4),
        dims=["level"],
        sources={"level": "obs[0]"},
        constraints=["level >= 0.1"],
        mu=[1.1],
        low=[0.0],
        high=[1.2],
    )


def ppo(env: VecEnv) -> Any:
    return PPO(
        "MultiInputPolicy" if isinstance(env.observation_space.sample(), dict) else "MlpPolicy",
        env,
        n_steps=64,
        batch_size=64,
        n_epochs=1,
        seed=0,
        device="cpu",
        learning_rate=0.0,
    )


def walked(env: VecEnv, steps: int = 600, **kwargs: Any) -> ViabilityCallback:
    given: dict[str, Any] = {"net_arch": [8], "learning_starts": 200, "batch_size": 32, "counterfactual_share": 0.5}
    callback = ViabilityCallback(**{**given, **kwargs})
    ppo(env).learn(steps, callback=callback)
    return callback


def critic(**kwargs: Any) -> ViabilityCallback:
    """
    :param kwargs: further parameters
    :return: looks but a few steps ahead, so that it has learned what is to be learned soon
    """
    return ViabilityCallback(net_arch=[32], gamma=0.8, counterfactual_share=0.5, batch_size=128, **kwargs)


def assert_knows_the_limit(callback: ViabilityCallback) -> None:
    level = np.array([[0.105], [0.11], [0.15], [0.2], [0.3]], dtype=np.float32)
    values = callback.actor.values(np.concatenate([level, level], axis=1))[:, :, 0]
    # Nothing empties the tank but action 1, and it need be chosen but once.
    np.testing.assert_allclose(values[:, 0], level[:, 0] - 0.1, atol=0.01)
    np.testing.assert_allclose(values[:, 1], level[:, 0] - 0.12, atol=0.01)


def test_a_critic_knows_a_limit_where_nobody_has_been() -> None:
    callback = critic(learning_starts=200, train_freq=1, gradient_steps=4)
    ppo(tanks()).learn(4000, callback=callback)
    assert callback.store.sample(4000, np.random.default_rng(0)).next_internal.min() > 0.3
    assert_knows_the_limit(callback)


def test_safe_demonstrations_tell_of_the_limit_before_the_first_step() -> None:
    env = tanks()
    shown = record(ppo(env), env, episodes=30, seed=0, deterministic=False)
    callback = critic(demonstrations=shown, pretrain_steps=4000, learning_starts=10_000)
    ppo(tanks()).learn(1, callback=callback)
    assert callback.updates == 4000
    assert_knows_the_limit(callback)


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_transitions_are_what_would_have_been(observation: str) -> None:
    """Walkers drain by their effort alone, so that any battery would have lost what theirs did."""
    callback = walked(walkers(observation, action="discrete"))
    store, spec = callback.store, callback.spec
    entries = callback.lookup("internal_entries")
    whole = StateSpec(spec.observation_space, spec.action_space, callback.lookup("viability"))
    other = CounterfactualTransitions(store, whole, entries, share=0.4)
    # The same rows, since nothing is drawn before them once J is known.
    other.sample(8, np.random.default_rng(0))
    was = store.sample(1000, np.random.default_rng(1))
    became = other.sample(1000, np.random.default_rng(1))
    changed = (was.internal != became.internal).any(axis=1)
    # Each variable is drawn anew half of the time.
    assert 0.25 < changed.mean() < 0.35
    for name, value in as_batch(became).items():
        tree_map(lambda a, b: np.testing.assert_array_equal(a[~changed], b[~changed]), value, getattr(was, name))
    np.testing.assert_allclose(
        (became.next_internal - became.internal)[:, 0], (was.next_internal - was.internal)[:, 0], atol=1e-2
    )
    for batch, x in ((became.observation, became.internal), (became.next_observation, became.next_internal)):
        shown = batch["sight"][:, 0] if observation == "dict" else batch[:, :2]
        np.testing.assert_allclose(shown, x, atol=1e-6)
    dies = became.next_internal[:, 0] < 0.2
    assert (dies & changed & ~was.terminated).sum() >= 8
    np.testing.assert_array_equal(became.terminated, dies)
    np.testing.assert_array_equal(became.done, dies | became.truncated)
    assert not (became.terminated & became.truncated).any()
    for name in ("action", "executed_action", "reward"):
        np.testing.assert_array_equal(getattr(became, name), getattr(was, name))


def test_a_limit_that_is_not_guarded_ends_a_life_too() -> None:
    env = VecActionShield(
        walkers(action="discrete", constraints=["battery >= 0.2", "heat <= 0.9"]), guards=["heat"], min_updates=10**6
    )
    callback = walked(env)
    assert callback.spec.viability.names == ("heat <= 0.9",)
    batch = callback._sample()
    assert (batch.internal[:, 1] > 0.8).any()
    np.testing.assert_array_equal(
        batch.terminated, (batch.next_internal[:, 0] < 0.2) | (batch.next_internal[:, 1] > 0.9)
    )


def test_it_goes_with_what_is_near_the_boundary_and_with_what_was_shown() -> None:
    env = walkers(action="discrete", horizon=5)
    shown = record(ppo(env), env, episodes=20, seed=0)
    callback = walked(
        walkers(action="discrete"), demonstrations=shown, near_boundary=0.25, pretrain_steps=5, counter_examples=0.25
    )
    batches: list[Transitions] = [callback._sample() for _ in range(20)]
    assert {len(batch) for batch in batches} == {32}
    assert callback.updates > 5
    lived = np.concatenate([callback.store.recall(np.arange(len(callback.store))).internal, shown.transitions.internal])
    drawn = np.concatenate([batch.internal for batch in batches])
    # Half of them are told otherwise, and each variable half of the time.
    assert 0.2 < (~np.isin(drawn[:, 0], lived[:, 0])).mean() < 0.3


def test_a_saved_training_goes_on_with_what_it_learned(tmp_path: Path) -> None:
    env = walkers(action="discrete")
    model, callback = ppo(env), ViabilityCallback(net_arch=[8], learning_starts=200, counterfactual_share=0.5)
    model.learn(600, callback=callback)
    learned = callback.state_dict()["counterfactuals"]
    assert learned["learned_from"] > 0
    model.save(tmp_path / "model.zip")
    again = ViabilityCallback(net_arch=[8], learning_starts=10_000, counterfactual_share=0.5)
    PPO.load(tmp_path / "model.zip", env=env, device="cpu").learn(1, callback=again, reset_num_timesteps=False)
    now = again.state_dict()["counterfactuals"]
    np.testing.assert_array_equal(now["jacobian"], learned["jacobian"])
    assert now["learned_from"] == learned["learned_from"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(walkers, sources=HIDDEN, action="discrete"), r"counterfactual_share=0.5\).*does not show heat"),
        (
            lambda: VecPartialObservation(walkers(action="discrete"), noise={"heat": 0.1}),
            r"counterfactual_share=0.5\).*does not always show heat as they are.*leave it 0",
        ),
    ],
)
def test_what_would_be_told_wrongly_is_refused(make: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ppo(make()).learn(1, callback=[MetricsCallback(), ViabilityCallback(counterfactual_share=0.5)])


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"counterfactual_share=1\.5"):
        ViabilityCallback(counterfactual_share=1.5)
    callback = walked(walkers(action="discrete"), steps=3)
    with pytest.raises(ValueError, match="share=-1 must be in"):
        CounterfactualTransitions(callback.store, callback.spec, callback.lookup("internal_entries"), share=-1)
