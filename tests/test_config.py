"""PersistConfig: reads its file exactly, refuses what it does not know, and opens both doors."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.config import PersistConfig
from persist_sb3.wrappers import HomeostatReward, InternalState, VecHomeostatReward

REFERENCE = """
env: {name: "GridLife-v0", horizon: 512}
internal_state: {dims: ["energy","temp","integrity"], mu: [0.7, 0.5, 0.9], w: [1.0, 0.5, 1.5]}
viability:
  constraints: ["energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6"]
  shield: {conf: 0.97, horizon: 8}
rewards: {lambda_homeo: 0.7, lambda_intr: 0.3, intrinsic: "empowerment"}
train: {algo: "SAC", batch_size: 1024, gamma: 0.995, update_every: 64, model_rollouts: 5}
"""
CARTPOLE: dict[str, Any] = {
    "env": {"name": "CartPole-v1"},
    "internal_state": {"dims": ["x", "theta"], "mu": [0, 0], "source": {"x": "obs[0]", "theta": "obs[2]"}},
    "viability": {"constraints": ["abs(x) <= 2.0", "abs(theta) <= 0.15"]},
}


def test_reads_the_reference_file(tmp_path: Path) -> None:
    path = tmp_path / "gridlife.yml"
    path.write_text(REFERENCE)
    config = PersistConfig.from_yaml(path)
    assert config.internal_state.w == (1.0, 0.5, 1.5)
    assert config.viability.shield is not None and config.viability.shield.conf == 0.97
    assert config.rewards.intrinsic == "empowerment"
    assert config.env_id == "GridLifeContinuous-v0"
    assert config.env_kwargs == {"horizon": 512}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"reward": {}}, "unknown key 'reward', did you mean 'rewards'"),
        ({"rewards": {"lambda_home": 1}}, "did you mean 'lambda_homeo'"),
        ({"rewards": {"lambda_homeo": -1}}, "greater than or equal to 0"),
        ({"rewards": {"lambda_homeo": float("nan")}}, "finite"),
        ({"rewards": {"intrinsic": "rnd"}}, "contradict"),
        ({"rewards": {"intrinsic": "curiosity", "lambda_intr": 1}}, "empowerment"),
        ({"internal_state": {"mu": [0.7, 0.5]}}, "mu has 2 entries for 3 variables"),
        ({"internal_state": {"mu": [0.1, 0.5, 0.9]}}, "energy >= 0.2"),
        ({"viability": {"constraints": ["enery >= 0.2"]}}, "energy"),
        ({"viability": {"constraints": ["energy => 0.2"]}}, r"\^"),
        ({"viability": {"shield": {"conf": 1.0}}}, "less than 1"),
        ({"train": {"algo": "SACK"}}, "did you mean 'sac'"),
        ({"train": {"gamma": 1.5}}, "gamma"),
        ({"internal_state": {"source": {"energy": {"initial": 1.0, "leak": 0.1}}}}, "leak"),
    ],
)
def test_refuses_what_it_does_not_know(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PersistConfig.model_validate(data)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- 1", "sections env"), ("", "sections env")]
)
def test_refuses_other_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        PersistConfig.from_yaml(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"viability": {"shield": {}}}, "shield"),
        ({"rewards": {"intrinsic": "surprise", "lambda_intr": 0.1}}, "intrinsic"),
    ],
)
def test_a_layer_that_does_not_exist_is_never_left_out_silently(data: dict[str, Any], message: str) -> None:
    config = PersistConfig.model_validate(data)
    with pytest.raises(RuntimeError, match=message):
        config.layers()


def test_both_doors_give_the_same_rewards() -> None:
    config = PersistConfig.model_validate(CARTPOLE)
    single = config.wrap(gym.make("CartPole-v1"))
    assert isinstance(single, HomeostatReward) and isinstance(single.env, InternalState)
    vec = config.wrap_vec(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    wrapper: Any = get_wrapper_class(config.zoo_entry(), "vec_env_wrapper")
    zoo = wrapper(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    assert isinstance(zoo, VecHomeostatReward)
    single.reset(seed=0)
    for venv in (vec, zoo):
        venv.seed(0)
        venv.reset()
    for t in range(8):
        reward = np.float32(single.step(t % 2)[1])
        assert reward == vec.step(np.array([t % 2]))[1][0] == zoo.step(np.array([t % 2]))[1][0]


def test_no_homeostat_without_weight() -> None:
    config = PersistConfig.model_validate({**CARTPOLE, "rewards": {"lambda_homeo": 0}})
    assert [name for name, _ in config.layers()] == ["InternalState"]


@pytest.mark.parametrize(
    ("algo", "expected"),
    [
        ("PPO", {"n_steps": 64, "gamma": 0.9, "batch_size": 32}),
        ("SAC", {"train_freq": 64, "gradient_steps": 64, "gamma": 0.9, "batch_size": 32}),
    ],
)
def test_training_terms_are_translated(algo: str, expected: dict[str, Any]) -> None:
    train = {"algo": algo, "gamma": 0.9, "batch_size": 32, "update_every": 64}
    entry = PersistConfig.model_validate({"train": train}).zoo_entry()
    assert {key: entry[key] for key in expected} == expected


def test_the_python_door_trains() -> None:
    persist = PersistConfig.model_validate(CARTPOLE)
    model = PPO("MlpPolicy", persist.wrap(gym.make("CartPole-v1")), n_steps=64, batch_size=32, n_epochs=1)
    model.learn(128, callback=persist.callbacks())
    assert model.num_timesteps == 128


def test_horizon_truncates() -> None:
    env = PersistConfig.model_validate({**CARTPOLE, "env": {"name": "CartPole-v1", "horizon": 3}}).make_env()
    env.reset(seed=0)
    assert [env.step(t % 2)[3] for t in range(3)] == [False, False, True]
