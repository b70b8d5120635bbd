"""BehaviourCloningCallback: a policy begins like the demonstrations, and keeps to them until its values are learned."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from persist_sb3.buffers import Demonstrations
from persist_sb3.callbacks import BehaviourCloningCallback
from persist_sb3.recording import record
from persist_sb3.wrappers import VecInternalState
from tests.toys import Walker


class LateWorker:
    """Rests for 8 steps, and works from then on: the observation's third entry is the time."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        return (observation[:, 2] >= 8.0).astype(np.int64), state


def make(n: int = 2) -> VecEnv:
    walkers = DummyVecEnv([partial(Walker, "box", "discrete", 12)] * n)
    constraints = ["battery >= 0.1", "heat in [0.0, 1.0]"]
    return VecInternalState(walkers, dims=["battery", "heat"], constraints=constraints, mu=[0.7, 0.5])


@pytest.fixture(scope="module")
def shown() -> Demonstrations:
    return record(LateWorker(), make(), 6, seed=0)


def make_model(venv: VecEnv, **kwargs: Any) -> PPO:
    return PPO("MlpPolicy", venv, n_steps=32, batch_size=64, seed=0, device="cpu", **kwargs)


def probabilities(model: PPO, shown: Demonstrations) -> torch.Tensor:
    observation = shown.transitions.observation
    if model.get_vec_normalize_env() is not None:
        observation = model.get_vec_normalize_env().normalize_obs(observation)  # type: ignore[union-attr]
    actions = torch.as_tensor(shown.transitions.action)
    with torch.no_grad():
        _, log_prob, _ = model.policy.evaluate_actions(torch.as_tensor(observation), actions)
    return log_prob.exp()


@pytest.mark.parametrize("normalized", [False, True])
def test_the_policy_does_what_was_shown(shown: Demonstrations, normalized: bool) -> None:
    venv = VecNormalize(make(), norm_reward=False) if normalized else make()
    model = make_model(venv)
    assert probabilities(model, shown).mean() < 0.5  # three actions, about equally likely
    model.learn(64, callback=BehaviourCloningCallback(shown, value_steps=10_000, gradient_steps=400))
    assert probabilities(model, shown).min() > 0.5
    assert probabilities(model, shown).mean() > 0.9


def test_only_the_value_function_learns_at_first(shown: Demonstrations) -> None:
    after = {}
    for steps in (64, 256):
        model = make_model(make())
        model.learn(steps, callback=BehaviourCloningCallback(shown, value_steps=10_000, gradient_steps=50))
        values = model.policy.predict_values(torch.as_tensor(shown.transitions.observation))
        after[steps] = probabilities(model, shown), values.detach()
        assert all(parameter.requires_grad for parameter in model.policy.parameters())
    assert torch.equal(after[64][0], after[256][0])
    assert not torch.allclose(after[64][1], after[256][1], atol=1e-3)


def test_then_the_policy_learns_too(shown: Demonstrations) -> None:
    model = make_model(make())
    model.learn(64, callback=BehaviourCloningCallback(shown, value_steps=64, gradient_steps=50))
    held = probabilities(model, shown)
    model = make_model(make())
    model.learn(256, callback=BehaviourCloningCallback(shown, value_steps=64, gradient_steps=50))
    assert not torch.allclose(held, probabilities(model, shown), atol=1e-4)


def test_a_run_that_is_resumed_is_left_as_it_is(
    shown: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(make())
    model.learn(64, callback=BehaviourCloningCallback(shown, gradient_steps=50))
    model.save(tmp_path / "model")

    def refuse(_: BehaviourCloningCallback) -> None:
        raise AssertionError("cloned again")

    monkeypatch.setattr(BehaviourCloningCallback, "_clone", refuse)
    resumed = PPO.load(tmp_path / "model", env=make(), device="cpu")
    resumed.learn(64, callback=BehaviourCloningCallback(shown, gradient_steps=50))


@pytest.mark.parametrize("algorithm", [DQN, RecurrentPPO])
def test_other_policies_are_refused(shown: Demonstrations, algorithm: Any) -> None:
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    model = algorithm(policy, make(), device="cpu")
    with pytest.raises(RuntimeError, match=rf"cannot clone into a {type(model.policy).__name__}: it is for PPO"):
        model.learn(64, callback=BehaviourCloningCallback(shown))


def test_a_file_will_do(shown: Demonstrations, tmp_path: Path) -> None:
    path = shown.save(tmp_path / "demonstrations.npz")
    models = [make_model(make()), make_model(make())]
    sources: list[Any] = [shown, path]
    for model, demonstrations in zip(models, sources, strict=True):
        model.learn(64, callback=BehaviourCloningCallback(demonstrations, gradient_steps=20))
    assert torch.equal(*(probabilities(model, shown) for model in models))


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("gradient_steps", 0), ("batch_size", 0), ("value_steps", -1), ("learning_rate", 0.0), ("weight_decay", -1.0)],
)
def test_out_of_range(shown: Demonstrations, parameter: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{parameter}={value}"):
        BehaviourCloningCallback(shown, **{parameter: value})
