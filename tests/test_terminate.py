"""TerminateOnViolation: episodes end where a simulated variable runs out, and Monitor sees it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from persist_sb3.wrappers import InternalState, TerminateOnViolation, VecHomeostatReward, VecInternalState
from persist_sb3.wrappers.adapters import lookup

# A tank of 1.0 that loses 0.125 a step holds at least 0.5 for 4 steps, and the fifth violates.
LIFETIME = 5
TANK: dict[str, Any] = {
    "dims": ["fuel"],
    "sources": {"fuel": {"initial": 1.0, "drain": 0.125}},
    "constraints": ["fuel >= 0.5"],
    "mu": [1.0],
}


def thirsty(**kwargs: Any) -> gym.Env[Any, Any]:
    """Pendulum never ends by itself; with a tank it does."""
    return TerminateOnViolation(InternalState(gym.make("Pendulum-v1"), **TANK))


class Lazy:
    """Predicts no torque."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return np.zeros((len(observation), 1), dtype=np.float32), state


def test_an_episode_ends_at_the_first_violation() -> None:
    env = thirsty()
    for _ in range(2):
        env.reset(seed=0)
        for step in range(1, LIFETIME + 1):
            _, _, terminated, truncated, info = env.step(env.action_space.sample())
            assert info["internal"][0] == 1.0 - 0.125 * step
            assert terminated == (step == LIFETIME)
            assert not truncated


def test_what_ends_by_itself_still_does() -> None:
    # Pushed to one side, CartPole falls long before the tank is empty.
    tank = TANK | {"sources": {"fuel": {"initial": 1.0, "drain": 0.001}}}
    env = TerminateOnViolation(InternalState(gym.make("CartPole-v1"), **tank))
    plain = gym.make("CartPole-v1")
    env.reset(seed=0)
    plain.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(0)
        assert terminated == plain.step(0)[2]
    assert info["cost"] == 0.0


def test_monitor_and_evaluation_see_the_episodes_and_the_layers_outside_agree() -> None:
    gym.register("Thirsty-v0", entry_point=thirsty)
    try:
        venv = VecHomeostatReward(VecInternalState(make_vec_env("Thirsty-v0", n_envs=2, seed=0)), alive_bonus=0.25)
    finally:
        del gym.registry["Thirsty-v0"]
    assert lookup(venv, "internal_names") == ("fuel",)
    venv.reset()
    for step in range(1, LIFETIME + 1):
        _, _, dones, infos = venv.step(np.zeros((2, 1), dtype=np.float32))
        assert dones.tolist() == [step == LIFETIME] * 2
        assert [info["cost"] for info in infos] == [float(step == LIFETIME)] * 2
    assert [info["episode"]["l"] for info in infos] == [LIFETIME] * 2
    assert not any(info["TimeLimit.truncated"] for info in infos)
    _, lengths = evaluate_policy(Lazy(), venv, n_eval_episodes=4, return_episode_rewards=True)
    assert lengths == [LIFETIME] * 4


def test_it_refuses_to_lie_outside_monitor() -> None:
    with pytest.raises(RuntimeError, match=r"outside of Monitor.*register an id"):
        TerminateOnViolation(InternalState(Monitor(gym.make("Pendulum-v1")), **TANK))


def test_it_needs_constraints() -> None:
    with pytest.raises(RuntimeError, match="nothing below it has any: wrap the environment in InternalState"):
        TerminateOnViolation(gym.make("Pendulum-v1"))


def test_it_needs_the_cost() -> None:
    class Silent(gym.Wrapper):
        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            *rest, info = self.env.step(action)
            del info["cost"]
            return *rest, info

    env = TerminateOnViolation(Silent(InternalState(gym.make("Pendulum-v1"), **TANK)))
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"info\['cost'\] is missing; the info has \['internal'"):
        env.step(env.action_space.sample())
