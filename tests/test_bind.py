"""Models reach every layer, wherever it runs, and are seen to change."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from persist_sb3.callbacks import PersistCallback, bind_all
from persist_sb3.state import PersistState
from persist_sb3.wrappers import InternalState, VecPartialObservation
from persist_sb3.wrappers.adapters import LayerWrapper, VecLayerWrapper
from persist_sb3.wrappers.layer import Layer, Step
from tests.toys import Walker


class AdviceLayer(Layer):
    """Publishes what its model says of a vector of ones, and how it was bound."""

    model: torch.nn.Module | None = None
    training: bool | None = None
    binds = 0

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        self.model, self.training = bundle.get("advice"), training
        self.binds += 1

    def after(self, step: Step) -> np.ndarray:
        advice = np.nan
        if self.model is not None:
            with torch.no_grad():
                advice = float(self.model(torch.ones(3)).sum())
        step.infos.publish("advice", self.everyone, np.full(self.num_envs, advice))
        return step.reward


class Advice(LayerWrapper):
    layer_type = AdviceLayer

    def bindings(self) -> list[tuple[bool | None, int]]:
        """How this wrapper was bound, and how often; then the same of the one below."""
        assert isinstance(self.layer, AdviceLayer)
        below = self.env.bindings() if isinstance(self.env, Advice) else []
        return [(self.layer.training, self.layer.binds), *below]


class VecAdvice(VecLayerWrapper):
    layer_type = AdviceLayer


def make_env() -> Advice:
    env = InternalState(Monitor(Walker()), dims=["battery", "heat"], constraints=["battery >= 0.2"], append=True)
    return Advice(Advice(env))


def advice(env: VecEnv) -> list[float]:
    *_, infos = env.step(np.zeros(env.num_envs, dtype=int))
    return [info["advice"] for info in infos]


def said_by(module: torch.nn.Module) -> float:
    with torch.no_grad():
        return float(module(torch.ones(3)).sum())


def train(module: torch.nn.Module) -> None:
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        module(torch.ones(3)).square().sum().backward()
        optimiser.step()


def make_module() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


@pytest.fixture
def state() -> PersistState:
    torch.manual_seed(0)
    state = PersistState()
    state.register("advice", make_module(), shared=True)
    state.register("private", make_module())
    return state


@pytest.fixture(params=["dummy", "subproc"])
def env(request: pytest.FixtureRequest) -> Iterator[VecEnv]:
    env = DummyVecEnv([make_env] * 2) if request.param == "dummy" else SubprocVecEnv([make_env])
    yield env
    env.close()


def test_layers_see_what_is_trained(env: VecEnv, state: PersistState) -> None:
    module = state.bundle()["advice"]
    env.reset()
    assert np.isnan(advice(env)).all()

    bind_all(env, state, training=True)
    before = said_by(module)
    assert advice(env) == pytest.approx([before] * env.num_envs)
    train(module)
    after = said_by(module)
    assert abs(after - before) > 1e-3
    assert advice(env) == pytest.approx([after] * env.num_envs)
    module.load_state_dict(make_module().state_dict())
    assert advice(env) == pytest.approx([said_by(module)] * env.num_envs)

    # Both layers of the stack were bound, once, and learn that an evaluation is one.
    assert env.env_method("bindings") == [[(True, 1), (True, 1)]] * env.num_envs
    bind_all(env, state, training=False)
    assert env.env_method("bindings") == [[(False, 2), (False, 2)]] * env.num_envs


def test_in_one_process_layers_get_the_very_modules(state: PersistState) -> None:
    env = DummyVecEnv([make_env])
    bind_all(env, state, training=True)
    assert env.envs[0].get_wrapper_attr("layer").model is state.bundle()["advice"]


def test_layers_around_the_vector_are_bound(state: PersistState) -> None:
    inner = VecAdvice(DummyVecEnv([make_env]))
    outer = VecAdvice(VecNormalize(VecPartialObservation(inner, hide=["heat"])))
    bind_all(outer, state, training=True)
    for wrapper in (inner, outer):
        assert isinstance(wrapper.layer, AdviceLayer)
        assert wrapper.layer.model is state.bundle()["advice"]
        assert wrapper.layer.binds == 1
    assert outer.env_method("bindings") == [[(True, 1), (True, 1)]]


def test_environments_without_layers_are_left_alone(state: PersistState) -> None:
    bind_all(VecNormalize(DummyVecEnv([Walker])), state, training=True)


class Teacher(PersistCallback):
    """Trains and shares one module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _on_training_start(self) -> None:
        self.state.register(self.name, make_module(), shared=True)
        super()._on_training_start()


class Nested(BaseCallback):
    def _on_step(self) -> bool:
        return True


def test_callbacks_bind_training_and_evaluation_environments() -> None:
    env, evaluation, deep = (DummyVecEnv([make_env] * n) for n in (2, 1, 1))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, policy_kwargs={"net_arch": [4]}, device="cpu")
    inner = EvalCallback(deep, eval_freq=1000)
    outer = EvalCallback(
        evaluation, eval_freq=4, n_eval_episodes=1, callback_after_eval=CallbackList([Nested(), inner])
    )
    model.learn(16, callback=[Teacher("other"), CallbackList([Teacher("advice"), outer])])
    for vec, training in ((env, True), (evaluation, False), (deep, False)):
        for single in vec.envs:
            layer = single.get_wrapper_attr("layer")
            # Bound by each callback; what counts is that the last time all models were there.
            assert (layer.training, layer.model) == (training, model.persist.parts["advice"])  # type: ignore[attr-defined]
