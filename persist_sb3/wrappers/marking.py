"""Tells environments that draw themselves which of their actions were replaced."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

#: Takes environments, ``(k,)``, and what was proposed to them and what is executed instead, ``(k, ...)`` each.
Mark = Callable[[NDArray[np.intp], NDArray[Any], NDArray[Any]], None]

#: Of an environment, called before the step with the proposed action and the one that is executed.
ONE = "mark_intervention"

#: Of a ``gymnasium.vector.VectorEnv`` that is no collection of environments; a :data:`Mark`.
MANY = "mark_interventions"


def find_mark(env: gym.Env[Any, Any] | VecEnv | VectorEnv[Any, Any, Any]) -> Mark | None:
    """
    :param env: an environment of any of the three APIs
    :return: tells it which actions of the coming step were replaced; None if it draws nothing (``render_mode`` is
        None), or does not want to know. A ``gymnasium.vector.AsyncVectorEnv`` cannot tell a single environment anything
    """
    if env.render_mode is None:
        return None
    if isinstance(env, gym.Env):
        return _mark_each([env]) if env.has_wrapper_attr(ONE) else None
    if isinstance(env, VecEnv):
        return _mark_of(env) if env.has_attr(ONE) else None
    while isinstance(env, VectorWrapper):
        env = env.env
    if isinstance(env, SyncVectorEnv):
        return _mark_each(env.envs) if all(one.has_wrapper_attr(ONE) for one in env.envs) else None
    return getattr(env, MANY, None)


def _mark_each(envs: Any) -> Mark:
    marks = [env.get_wrapper_attr(ONE) for env in envs]

    def mark(slots: NDArray[np.intp], proposed: NDArray[Any], executed: NDArray[Any]) -> None:
        for slot, *actions in zip(slots.tolist(), proposed, executed, strict=True):
            marks[slot](*actions)

    return mark


def _mark_of(venv: VecEnv) -> Mark:
    inner = venv.unwrapped
    if isinstance(inner, DummyVecEnv):
        # The environments are right there: no need to ask for them through every wrapper, at every step.
        return _mark_each(inner.envs)

    def mark(slots: NDArray[np.intp], proposed: NDArray[Any], executed: NDArray[Any]) -> None:
        for slot, *actions in zip(slots.tolist(), proposed, executed, strict=True):
            venv.env_method(ONE, *actions, indices=slot)

    return mark
