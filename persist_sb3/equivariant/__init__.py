"""
Policies that know the symmetries of their environment: for PPO, A2C, TRPO, MaskablePPO and SAC.

What such a policy does in the mirror image of a state is the mirror image of what it does in the state, exactly and
from the first step on, and its value is the same. What it learns in one state it has learned in all images (van der
Pol et al., "MDP homomorphic networks: group symmetries in reinforcement learning", NeurIPS 2020).
"""

from persist_sb3.equivariant.actor_critic import (
    EquivariantMaskableMultiInputPolicy,
    EquivariantMaskablePolicy,
    EquivariantMultiInputPolicy,
    EquivariantPolicy,
)
from persist_sb3.equivariant.sac import EquivariantSACMultiInputPolicy, EquivariantSACPolicy

__all__ = [
    "EquivariantMaskableMultiInputPolicy",
    "EquivariantMaskablePolicy",
    "EquivariantMultiInputPolicy",
    "EquivariantPolicy",
    "EquivariantSACMultiInputPolicy",
    "EquivariantSACPolicy",
]
