"""``GridLifeMemory-v0`` and ``GridLifeScentMemory-v0``: GridLife for an agent that remembers what it saw."""

from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.vector import GridLifeVectorEnv
from persist_sb3.wrappers import SpatialMemory, VectorSpatialMemory


def make(**settings: Any) -> gym.Env[Any, Any]:
    """
    :param settings: of :class:`~persist_sb3.envs.gridlife.GridLifeEnv`
    :return: the environment, with a map in the place of its window
    :raises ValueError: if a value is out of its range
    """
    return SpatialMemory(GridLifeEnv(**settings))


def make_vector(num_envs: int = 1, **settings: Any) -> VectorEnv[Any, Any, Any]:
    """
    :param num_envs: how many environments
    :param settings: of :class:`~persist_sb3.envs.vector.GridLifeVectorEnv`
    :return: the environments, as one batch
    :raises ValueError: if a value is out of its range
    """
    return VectorSpatialMemory(GridLifeVectorEnv(num_envs, **settings))
