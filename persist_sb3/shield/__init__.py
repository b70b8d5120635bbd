"""The shield: judges actions before they are executed, and finds the nearest one that is safe."""

from persist_sb3.shield.decision import Decision, Verdict
from persist_sb3.shield.enumerated import Correction, EnumeratedShield

__all__ = ["Correction", "Decision", "EnumeratedShield", "Verdict"]
