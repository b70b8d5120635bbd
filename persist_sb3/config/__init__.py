"""One description of a persistent agent, for Python and for rl-zoo3."""

from persist_sb3.config.environment import EnvSection, MemorySection
from persist_sb3.config.internal_state import InternalStateSection, SetpointSearchSection
from persist_sb3.config.persist import PersistConfig
from persist_sb3.config.rewards import RewardsSection
from persist_sb3.config.train import CONTINUOUS_OFF_POLICY, DISCRETE_OFF_POLICY, ON_POLICY, TrainSection
from persist_sb3.config.viability import PlannerSection, ShieldSection, ViabilitySection

__all__ = [
    "CONTINUOUS_OFF_POLICY",
    "DISCRETE_OFF_POLICY",
    "ON_POLICY",
    "EnvSection",
    "InternalStateSection",
    "MemorySection",
    "PersistConfig",
    "PlannerSection",
    "RewardsSection",
    "SetpointSearchSection",
    "ShieldSection",
    "TrainSection",
    "ViabilitySection",
]
