"""A function of Box actions that is made of pieces, and may jump from one to the next."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from persist_sb3.models.prepared import Prepared

Floats = NDArray[np.float32]

#: Sharpness of the partition at the start: a centre's own piece weighs ``exp(4)`` times as much there as a neighbour's.
SHARPNESS = 4.0


class Pieces(nn.Module):
    """
    A soft partition of a box of actions about ``k`` learned centres: normalised radial basis functions, ``phi_i(a) =
    exp(-b |a - c_i|^2) / sum_j exp(-b |a - c_j|^2)``, with a learned sharpness ``b``. ``sum_i phi_i(a) v_i(s)`` takes
    its greatest values near centres, so the best action is looked up and not searched for (Asadi, Parikh, Parr,
    Konidaris and Littman, "Deep radial-basis value functions for continuous control", AAAI 2021; there the centres
    depend on the state, here they do not).

    :param count: how many, ``k``
    :param action_dim: components of an action, ``A``
    """

    def __init__(self, count: int, action_dim: int) -> None:
        super().__init__()
        spread = torch.quasirandom.SobolEngine(action_dim).draw(count)
        self.centres = nn.Parameter(2.0 * spread - 1.0)
        spacing = 2.0 / count ** (1.0 / action_dim)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS / spacing**2)))
        self._fast = Prepared(_prepared, self.centres, self.log_sharpness)

    def forward(self, action: torch.Tensor) -> torch.Tensor:
        """
        :param action: encoded in ``[-1, 1]``, ``(n, A)``
        :return: how much each piece weighs there, ``(n, k)``; rows add up to 1
        """
        # |a|^2 is the same for every piece, and left out.
        logits = 2.0 * action @ self.centres.T - self.centres.square().sum(dim=1)
        return torch.softmax(self.log_sharpness.exp() * logits, dim=1)

    @property
    def actions(self) -> torch.Tensor:
        """The centres, or what is nearest to them in the box, ``(k, A)``."""
        return self.centres.clamp(-1.0, 1.0)

    def weights(self, action: Floats) -> Floats:
        """
        The same as calling it, without torch.

        :param action: ``(n, A)``
        :return: ``(n, k)``
        """
        slopes, offsets, _, _ = self._fast()
        return _softmax(action @ slopes + offsets)

    def centred(self) -> tuple[Floats, Floats]:
        """
        :return: :attr:`actions`, ``(k, A)``, and how much each piece weighs there, ``(k, k)``
        """
        _, _, actions, weights = self._fast()
        return actions, weights


def _prepared(centres: Floats, log_sharpness: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """
    :param centres: ``(k, A)``
    :param log_sharpness: ``()``
    :return: slopes and offsets of the logits, the centres in the box, and the weights there
    """
    sharpness: Floats = np.exp(log_sharpness)
    slopes: Floats = 2.0 * sharpness * centres.T
    offsets: Floats = -sharpness * np.square(centres).sum(axis=1)
    actions: Floats = centres.clip(-1.0, 1.0)
    return slopes, offsets, actions, _softmax(actions @ slopes + offsets)


def _softmax(logits: Floats) -> Floats:
    weights: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
