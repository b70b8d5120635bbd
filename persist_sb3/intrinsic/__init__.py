"""Intrinsic rewards: what an agent is paid for, by how new or how expected things are, or how much it decides."""

from persist_sb3.intrinsic.empowerment import Empowerment
from persist_sb3.intrinsic.rnd import RND
from persist_sb3.intrinsic.scaling import ForwardScale
from persist_sb3.intrinsic.smirl import EpisodeDensity

__all__ = ["RND", "Empowerment", "EpisodeDensity", "ForwardScale"]
