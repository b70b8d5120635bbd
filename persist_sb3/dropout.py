"""``GridLifeDropout-v0``: GridLife whose sensors of the internal variables fail now and then."""

from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.vector import GridLifeVectorEnv
from persist_sb3.wrappers import InternalState, PartialObservation, VectorInternalState, VectorPartialObservation


def make(dropout: float = 0.3, **settings: Any) -> gym.Env[Any, Any]:
    """
    :param dropout: probability a step that an internal variable reads 0, of each by itself
    :param settings: of :class:`~persist_sb3.envs.gridlife.GridLifeEnv`
    :return: the environment; ``info["internal"]`` keeps the truth
    :raises ValueError: if a value is out of its range
    """
    return PartialObservation(InternalState(GridLifeEnv(**settings)), dropout=dropout)


def make_vector(num_envs: int = 1, dropout: float = 0.3, **settings: Any) -> VectorEnv[Any, Any, Any]:
    """
    :param num_envs: how many environments
    :param dropout: probability a step that an internal variable reads 0, of each by itself
    :param settings: of :class:`~persist_sb3.envs.vector.GridLifeVectorEnv`
    :return: the environments, as one batch
    :raises ValueError: if a value is out of its range
    """
    return VectorPartialObservation(VectorInternalState(GridLifeVectorEnv(num_envs, **settings)), dropout=dropout)
