"""Intrinsic rewards: what an agent is paid for finding out."""

from persist_sb3.intrinsic.rnd import RND
from persist_sb3.intrinsic.scaling import ForwardScale

__all__ = ["RND", "ForwardScale"]
