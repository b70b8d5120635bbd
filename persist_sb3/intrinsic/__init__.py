"""Intrinsic rewards: what an agent is paid for, by how new or how expected things are, or how much it decides."""

from persist_sb3.intrinsic.bonus import Bonus, Moves
from persist_sb3.intrinsic.empowerment import Control, Empowerment
from persist_sb3.intrinsic.rnd import RND, Novelty
from persist_sb3.intrinsic.scaling import ForwardScale
from persist_sb3.intrinsic.smirl import EpisodeDensity
from persist_sb3.intrinsic.surprise import Surprise, SurpriseUnit
from persist_sb3.intrinsic.unit import BonusFactor, BonusUnit

__all__ = [
    "RND",
    "Bonus",
    "BonusFactor",
    "BonusUnit",
    "Control",
    "Empowerment",
    "EpisodeDensity",
    "ForwardScale",
    "Moves",
    "Novelty",
    "Surprise",
    "SurpriseUnit",
]
