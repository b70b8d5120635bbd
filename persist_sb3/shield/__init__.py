"""The shield: judges actions before they are executed, and finds the nearest one that is safe."""

from persist_sb3.shield.continuous import BoxShield
from persist_sb3.shield.decision import Decision, Verdict
from persist_sb3.shield.enumerated import Correction, EnumeratedShield
from persist_sb3.shield.projection import Projection

__all__ = ["BoxShield", "Correction", "Decision", "EnumeratedShield", "Projection", "Verdict"]
