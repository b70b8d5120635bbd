"""What can be known about GridLife without learning: how to stay alive, from where, and with how much influence."""

from persist_sb3.envs.oracle.empowerment import (
    blahut_arimoto,
    empowerment,
    sequence_capacity,
    viable_empowerment,
)
from persist_sb3.envs.oracle.kernel import Bounds, ExactViability
from persist_sb3.envs.oracle.masks import OracleMasks
from persist_sb3.envs.oracle.planner import BeamPlanner, OraclePolicy
from persist_sb3.envs.oracle.view import FullView

__all__ = [
    "BeamPlanner",
    "Bounds",
    "ExactViability",
    "FullView",
    "OracleMasks",
    "OraclePolicy",
    "blahut_arimoto",
    "empowerment",
    "sequence_capacity",
    "viable_empowerment",
]
