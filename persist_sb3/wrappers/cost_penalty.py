"""A price for every step that violates a constraint."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persist_sb3.lagrange import Multiplier
from persist_sb3.wrappers.adapters import LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.layer import Layer, Step

TERM = "cost"


class CostPenaltyLayer(Layer):
    """
    Subtracts ``weight * info["cost"]`` from the reward, and reports that as ``info["reward_terms"]["cost"]``. With
    :class:`~persist_sb3.callbacks.LagrangeCallback` the weight is the Lagrange multiplier of a target: an algorithm
    ``X`` becomes ``X``-Lagrangian (Ray, Achiam & Amodei, "Benchmarking safe exploration in deep reinforcement
    learning", 2019).

    :param weight: price of a violating step, as long as no callback sets it, at least 0
    :raises ValueError: if it is out of its range
    """

    def __init__(self, weight: float = 0.0) -> None:
        if not (np.isfinite(weight) and weight >= 0.0):
            raise ValueError(f"weight={weight} must be a finite number, at least 0")
        self.weight = weight
        self._multiplier: Multiplier | None = None

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        multiplier = bundle.get("lagrange")
        self._multiplier = multiplier if multiplier is not None and multiplier.scales == "cost" else None

    def after(self, step: Step) -> NDArray[np.float64]:
        weight, cost = self.weight, step.infos.column(("cost",), self.everyone) * step.live
        if self._multiplier is not None:
            weight = float(self._multiplier.value)
            # For replay buffers, which pay it by the multiplier of a later day.
            step.infos.publish("whole_terms", self.everyone, -cost, TERM)
        penalty = weight * cost
        step.infos.publish("reward_terms", self.everyone, -penalty, TERM)
        return step.reward - penalty


class CostPenalty(LayerWrapper):
    """:class:`CostPenaltyLayer` around a ``gymnasium.Env``."""

    layer_type = CostPenaltyLayer


class VecCostPenalty(VecLayerWrapper):
    """:class:`CostPenaltyLayer` around SB3's ``VecEnv``."""

    layer_type = CostPenaltyLayer


class VectorCostPenalty(VectorLayerWrapper):
    """:class:`CostPenaltyLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = CostPenaltyLayer
