"""GradientStepsCallback: how often an off-policy algorithm learns, counted by hand."""

from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.callbacks import GradientStepsCallback
from tests.learners import make_model


def make(algorithm: Any, env_id: str) -> Any:
    return make_model(DummyVecEnv([lambda: gym.make(env_id)] * 2), algorithm)


@pytest.mark.parametrize(("algorithm", "env_id"), [(SAC, "Pendulum-v1"), (DQN, "CartPole-v1")])
def test_it_learns_more_in_the_beginning(algorithm: Any, env_id: str) -> None:
    model = make(algorithm, env_id)
    # Rollouts of 8 steps in 2 environments end at 16, 32, 48 ... 128, and learning starts after 40.
    model.learn(128, callback=GradientStepsCallback({0: 3, 64: 2, 96: 1}))
    # Rollouts that begin at 32 and 48 with 3 steps each, at 64 and 80 with 2, at 96 and 112 with 1.
    assert model._n_updates == 2 * 3 + 2 * 2 + 2 * 1
    model.learn(32, callback=GradientStepsCallback({0: 3, 144: 5}), reset_num_timesteps=False)
    assert model._n_updates == 12 + 3 + 5


def test_an_on_policy_algorithm_has_none() -> None:
    with pytest.raises(TypeError, match="gradient_steps, which PPO does not have: take it out"):
        make(PPO, "CartPole-v1").learn(64, callback=GradientStepsCallback(4))


def test_what_is_no_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gradient_steps=\{10: 4\} must be"):
        GradientStepsCallback({10: 4})
