"""
The layers, each as a wrapper of a ``gymnasium.Env`` (``HomeostatReward``), of SB3's ``VecEnv`` (``VecHomeostatReward``)
and of a ``gymnasium.vector.VectorEnv`` (``VectorHomeostatReward``).

Example::

    >>> import gymnasium as gym
    >>> from persist_sb3.wrappers import HomeostatReward, InternalState
    >>> env = InternalState(
    ...     gym.make("CartPole-v1"),
    ...     dims=["x", "theta"],
    ...     sources={"x": "obs[0]", "theta": "obs[2]"},
    ...     constraints=["abs(x) <= 2.0", "abs(theta) <= 0.15"],
    ...     mu=[0.0, 0.0],
    ... )
    >>> env = HomeostatReward(env, alive_bonus=0.5, weight=0.1)
    >>> _, info = env.reset(seed=0)
    >>> *_, info = env.step(1)
    >>> sorted(info["reward_terms"])
    ['homeo', 'task']
"""

from persist_sb3._doors import refuse_root_import
from persist_sb3.wrappers.action_shield import (
    ActionShield,
    ShieldError,
    VecActionShield,
    VectorActionShield,
)
from persist_sb3.wrappers.homeostat_reward import (
    HomeostatReward,
    VecHomeostatReward,
    VectorHomeostatReward,
)
from persist_sb3.wrappers.internal_state import (
    InternalState,
    NonFiniteError,
    VecInternalState,
    VectorInternalState,
)
from persist_sb3.wrappers.partial_observation import (
    PartialObservation,
    VecPartialObservation,
    VectorPartialObservation,
)
from persist_sb3.wrappers.rnd_bonus import RNDBonus, VecRNDBonus, VectorRNDBonus
from persist_sb3.wrappers.smirl_bonus import SMiRLBonus, VecSMiRLBonus, VectorSMiRLBonus
from persist_sb3.wrappers.surprise_bonus import SurpriseBonus, VecSurpriseBonus, VectorSurpriseBonus
from persist_sb3.wrappers.terminate import TerminateOnViolation

__all__ = [
    "ActionShield",
    "HomeostatReward",
    "InternalState",
    "NonFiniteError",
    "PartialObservation",
    "RNDBonus",
    "SMiRLBonus",
    "ShieldError",
    "SurpriseBonus",
    "TerminateOnViolation",
    "VecActionShield",
    "VecHomeostatReward",
    "VecInternalState",
    "VecPartialObservation",
    "VecRNDBonus",
    "VecSMiRLBonus",
    "VecSurpriseBonus",
    "VectorActionShield",
    "VectorHomeostatReward",
    "VectorInternalState",
    "VectorPartialObservation",
    "VectorRNDBonus",
    "VectorSMiRLBonus",
    "VectorSurpriseBonus",
]

refuse_root_import(__name__)
