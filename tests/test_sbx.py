"""SBX has SB3's algorithms in JAX: they train inside the layers, and what callbacks trained comes back with them."""

import importlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.base_class import BaseAlgorithm

from persist_sb3.callbacks import MetricsCallback, ViabilityCallback
from persist_sb3.wrappers import ActionShield, HomeostatReward, InternalState

pytest.importorskip("sbx")

STATES: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "dims": ["x", "theta"],
        "sources": {"x": "obs[0]", "theta": "obs[2]"},
        "constraints": ["abs(x) <= 2.0", "abs(theta) <= 0.18"],
        "mu": [0.0, 0.0],
    },
    "Pendulum-v1": {
        "dims": ["heat"],
        "sources": {"heat": {"initial": 0.0, "drain": 0.02, "action_cost": [-0.02], "low": 0.0, "high": 1.0}},
        "constraints": ["heat <= 0.8"],
        "mu": [0.0],
        "append": True,
    },
}


def make(env_id: str) -> gym.Env[Any, Any]:
    env = HomeostatReward(InternalState(gym.make(env_id), **STATES[env_id]), death_penalty=5.0)
    return ActionShield(env, min_updates=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "env_id", "kwargs"),
    [
        ("PPO", "CartPole-v1", {"n_steps": 64, "batch_size": 64, "n_epochs": 1}),
        ("DQN", "CartPole-v1", {"learning_starts": 32, "buffer_size": 1000, "batch_size": 16}),
        ("SAC", "Pendulum-v1", {"learning_starts": 32, "buffer_size": 1000, "batch_size": 16}),
    ],
)
def test_it_trains_inside_the_layers(name: str, env_id: str, kwargs: dict[str, Any], tmp_path: Path) -> None:
    algorithm: type[BaseAlgorithm] = getattr(importlib.import_module("sbx"), name)
    env = make(env_id)
    model = algorithm("MlpPolicy", env, seed=0, **kwargs)
    metrics, viability = MetricsCallback(), ViabilityCallback(learning_starts=32, batch_size=16, net_arch=[8])
    model.learn(192, callback=[metrics, viability])
    assert env.unwrapped.spec is not None and model.num_timesteps >= 192
    assert env.get_wrapper_attr("layer").ready
    trained = vars(model)["persist"].parts["viability"].state_dict()
    model.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=make(env_id))
    saved = vars(loaded)["persist"].pending["viability"]
    assert set(saved) == set(trained)
    assert all((saved[key] == value).all() for key, value in trained.items() if hasattr(value, "all"))
