"""Surprise: how unlikely a world model held what then happened."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.batch import flatten
from persist_sb3.intrinsic.bonus import Moves
from persist_sb3.models.latent import LatentModel
from persist_sb3.models.world import WorldModel

Floats = NDArray[np.float64]

#: Names of the shared parts.
WORLD_MODEL, UNIT = "world_model", "surprise"


class SurpriseUnit(torch.nn.Module):
    """What turns a score of :class:`Surprise` into a bonus of weight 1; 0 until it was measured."""

    value: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))


@dataclass(frozen=True)
class Surprise:
    """
    ``-NLL(o'|s,a) - beta * ||x' - mu||^2``: what a world model foresaw, near the setpoint. It rewards predictability,
    as the free-energy principle has it (Friston, 2010). With ``seek`` it is ``+NLL(o'|s,a) - beta * ||x' - mu||^2``,
    which pays for what the model cannot foresee (Schmidhuber, 1991; Achiam & Sastry, "Surprise-based intrinsic
    motivation for deep reinforcement learning", 2017, arXiv:1703.01732).

    :param beta: of the distance from the setpoint, at least 0
    :param seek: pay for surprise, instead of for its absence
    :raises ValueError: if ``beta`` is out of its range
    """

    beta: float = 1.0
    seek: bool = False

    parts: ClassVar[tuple[str, ...]] = (WORLD_MODEL, UNIT)

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta < np.inf:
            raise ValueError(f"beta={self.beta} must be at least 0 and finite")

    def surprise(self, parts: Mapping[str, Any], moves: Moves) -> Floats:
        """
        :param parts: ``world_model``, trained
        :param moves: ``n`` transitions
        :return: ``NLL(o'|s,a)``, see :meth:`~persist_sb3.models.prediction.PredictiveModel.white_nll`, in nats,
            ``(n,)``; a latent model is asked without its memory of the episode
        """
        model: WorldModel | LatentModel = parts[WORLD_MODEL]
        spec = model.spec
        following = flatten(spec.observation_space, moves.next_observation).astype(np.float32, copy=False)
        return model.surprise(
            spec.encode(moves.observation, moves.internal), spec.encode_action(moves.action), following
        )

    def reward(self, surprise: Floats, next_internal: Floats, mu: Floats | None) -> Floats:
        """
        :param surprise: ``NLL``, ``(n,)``
        :param next_internal: ``x'``, ``(n, d)``
        :param mu: setpoint, ``(d,)``; not needed if ``beta`` is 0
        :return: the score, ``(n,)``
        """
        signed = surprise if self.seek else -surprise
        if mu is None or not self.beta:
            return signed
        return signed - self.beta * np.square(next_internal - mu).sum(axis=1)

    def score(self, parts: Mapping[str, Any], moves: Moves) -> Floats:
        """
        :param parts: ``world_model``; its score is 0 until it has been trained
        :param moves: ``n`` transitions
        :return: the score, in nats, ``(n,)``
        """
        model: WorldModel | LatentModel = parts[WORLD_MODEL]
        if not model.updates:
            return np.zeros(len(moves.next_internal))
        return self.reward(self.surprise(parts, moves), moves.next_internal, model.spec.viability.mu)

    def unit(self, parts: Mapping[str, Any]) -> float:
        """
        :param parts: ``surprise``
        :return: what a score is multiplied with
        """
        return float(parts[UNIT].value)
