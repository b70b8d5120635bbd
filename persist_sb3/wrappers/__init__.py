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
from persist_sb3.wrappers.belief_state import (
    BeliefError,
    BeliefState,
    VecBeliefState,
    VectorBeliefState,
)
from persist_sb3.wrappers.cost_penalty import CostPenalty, VecCostPenalty, VectorCostPenalty
from persist_sb3.wrappers.empowerment_bonus import EmpowermentBonus, VecEmpowermentBonus, VectorEmpowermentBonus
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
from persist_sb3.wrappers.random_setpoint import RandomSetpoint, VecRandomSetpoint, VectorRandomSetpoint
from persist_sb3.wrappers.reach_avoid_planner import (
    PlannerError,
    PlannerPolicy,
    ReachAvoidPlanner,
    VecReachAvoidPlanner,
    VectorReachAvoidPlanner,
)
from persist_sb3.wrappers.rnd_bonus import RNDBonus, VecRNDBonus, VectorRNDBonus
from persist_sb3.wrappers.smirl_bonus import SMiRLBonus, VecSMiRLBonus, VectorSMiRLBonus
from persist_sb3.wrappers.spatial_memory import SpatialMemory, VecSpatialMemory, VectorSpatialMemory
from persist_sb3.wrappers.surprise_bonus import SurpriseBonus, VecSurpriseBonus, VectorSurpriseBonus
from persist_sb3.wrappers.terminate import TerminateOnViolation
from persist_sb3.wrappers.trials import VecTrials

__all__ = [
    "ActionShield",
    "BeliefError",
    "BeliefState",
    "CostPenalty",
    "EmpowermentBonus",
    "HomeostatReward",
    "InternalState",
    "NonFiniteError",
    "PartialObservation",
    "PlannerError",
    "PlannerPolicy",
    "RNDBonus",
    "RandomSetpoint",
    "ReachAvoidPlanner",
    "SMiRLBonus",
    "ShieldError",
    "SpatialMemory",
    "SurpriseBonus",
    "TerminateOnViolation",
    "VecActionShield",
    "VecBeliefState",
    "VecCostPenalty",
    "VecEmpowermentBonus",
    "VecHomeostatReward",
    "VecInternalState",
    "VecPartialObservation",
    "VecRNDBonus",
    "VecRandomSetpoint",
    "VecReachAvoidPlanner",
    "VecSMiRLBonus",
    "VecSpatialMemory",
    "VecSurpriseBonus",
    "VecTrials",
    "VectorActionShield",
    "VectorBeliefState",
    "VectorCostPenalty",
    "VectorEmpowermentBonus",
    "VectorHomeostatReward",
    "VectorInternalState",
    "VectorPartialObservation",
    "VectorRNDBonus",
    "VectorRandomSetpoint",
    "VectorReachAvoidPlanner",
    "VectorSMiRLBonus",
    "VectorSpatialMemory",
    "VectorSurpriseBonus",
]

refuse_root_import(__name__)
