"""What the learner sees, and what models learn from."""

from persist_sb3.buffers.counter_examples import CounterExamples
from persist_sb3.buffers.counterfactual import CounterfactualDictReplayBuffer, CounterfactualReplayBuffer
from persist_sb3.buffers.counterfactual_transitions import CounterfactualTransitions
from persist_sb3.buffers.demonstrations import DemonstrationError, Demonstrations
from persist_sb3.buffers.near_boundary import NearBoundaryBuffer
from persist_sb3.buffers.nstep import NStepDictReplayBuffer
from persist_sb3.buffers.recomputed import (
    ExecutedActionRecomputedBonusDictReplayBuffer,
    ExecutedActionRecomputedBonusReplayBuffer,
    RecomputedBonusDictReplayBuffer,
    RecomputedBonusReplayBuffer,
)
from persist_sb3.buffers.replay import (
    ExecutedActionDictReplayBuffer,
    ExecutedActionNStepDictReplayBuffer,
    ExecutedActionNStepReplayBuffer,
    ExecutedActionReplayBuffer,
)
from persist_sb3.buffers.transitions import Sequences, Transitions, TransitionStore, concatenate

__all__ = [
    "CounterExamples",
    "CounterfactualDictReplayBuffer",
    "CounterfactualReplayBuffer",
    "CounterfactualTransitions",
    "DemonstrationError",
    "Demonstrations",
    "ExecutedActionDictReplayBuffer",
    "ExecutedActionNStepDictReplayBuffer",
    "ExecutedActionNStepReplayBuffer",
    "ExecutedActionRecomputedBonusDictReplayBuffer",
    "ExecutedActionRecomputedBonusReplayBuffer",
    "ExecutedActionReplayBuffer",
    "NStepDictReplayBuffer",
    "NearBoundaryBuffer",
    "RecomputedBonusDictReplayBuffer",
    "RecomputedBonusReplayBuffer",
    "Sequences",
    "TransitionStore",
    "Transitions",
    "concatenate",
]
