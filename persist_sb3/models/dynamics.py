"""Probabilistic ensembles of how a part of the state changes: what the internal model and the world model share."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.draws import Noise
from persist_sb3.models.heads import Floats, Heads
from persist_sb3.models.networks import EnsembleMLP, NumpyEnsemble
from persist_sb3.models.prediction import (
    Assessment,
    Clip,
    Distribution,
    FastDistribution,
    PredictiveModel,
    Units,
    sigmoid,
)
from persist_sb3.models.spec import StateSpec


class DynamicsModel(PredictiveModel):
    """
    An ensemble of networks that predict, from ``s`` and an action, the distribution of a part of ``s'`` (the
    probabilistic ensemble of PETS, Chua et al., NeurIPS 2018). The members' own variance is what chance brings; what
    they disagree about is what has not been learned.

    :meth:`predict` and :meth:`loss` are torch's, and differentiable in the action as well; everything else is NumPy,
    for the small batches of layers.

    :param spec: the environment's state and actions
    :param part: which columns of ``s`` are predicted
    :param heads: of those columns
    :param net_arch: sizes of the hidden layers
    :param members: networks in the ensemble, ``e``
    :param arguments: the other arguments of the subclass's constructor
    :raises ValueError: if ``members`` is below 1
    """

    def __init__(
        self, spec: StateSpec, part: slice, heads: Heads, net_arch: Sequence[int], members: int, **arguments: Any
    ) -> None:
        super().__init__(spec, part, heads, net_arch=list(net_arch), members=members, **arguments)
        if members < 1:
            raise ValueError(f"members={members} must be at least 1")
        self.members = members
        self.ensemble = EnsembleMLP(members, [spec.state_dim + spec.action_dim, *net_arch, self.outputs])
        with torch.no_grad():
            for last in (self.ensemble.weights[-1], self.ensemble.biases[-1]):
                last[..., -1] = 0.0
        self._fast = NumpyEnsemble(self.ensemble)
        self._fast_standardizer = self.standardizer.numpy()

    # In torch

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> Distribution:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: of every member, ``(e, n, ...)``
        """
        return self._split(self.ensemble(torch.cat([self.standardizer(state), action], dim=1)))

    def predict(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: each member's mean and variance of the predicted part of ``s'``, ``(e, n, m)`` both
        """
        out = self(state, action)
        return self._describe(out, *self._behind(out.gate.clamp(0.0, 1.0), state, action))

    def loss(
        self, state: torch.Tensor, action: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, beta: float
    ) -> torch.Tensor:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        :param weight: of each row for each member, ``(e, n)``
        :param beta: see :func:`~persist_sb3.models.prediction.beta_nll`
        :return: the mean over entries and rows, summed over members
        """
        out: Distribution = self(state, action)
        losses = self._losses(out, target, *self._behind(Clip.apply(out.gate), state, action), beta)
        return (weight * losses).mean(dim=1).sum() / self.heads.entries

    # In NumPy

    def sample(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param members: which network predicts each row, ``(n,)``
        :param noise: what chance is drawn from; None for no chance: the mean of numbers, and the likeliest of the rest
        :return: the predicted part of ``s'``, numbers clipped to their bounds, ``(n, m)``
        """
        return self._draw(*self._fast_forward(state, action, members), noise)

    def moments(self, state: Floats, action: Floats, members: NDArray[np.intp] | None = None) -> tuple[Floats, Floats]:
        """
        :meth:`predict` without torch.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param members: which network predicts each row, ``(n,)``. Default: all of them
        :return: each member's mean and variance, ``(e, n, m)`` both; with ``members``, those of each row's, ``(n, m)``
        """
        return self._moments(*self._fast_forward(state, action, members))

    def nll(self, state: Floats, action: Floats, target: Floats) -> NDArray[np.float64]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        :return: its negative log-likelihood under the mixture of all members, summed over entries, ``(n,)``
        """
        out, expected, units = self._fast_forward(state, action)
        return self._mixture_nll(self._log_likelihood(out, target, expected, units))

    def _mixture_nll(self, likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
        return math.log(self.members) - np.logaddexp.reduce(likelihood, axis=0)

    def assess(self, state: Floats, action: Floats, target: Floats, *belief: Any) -> Assessment:
        forward = self._fast_forward(state, action)
        out, expected, units = forward
        nll = self._mixture_nll(self._log_likelihood(out, target, expected, units))
        return Assessment(*self._moments(*forward), nll, self._disagreement(*forward))

    def surprise(self, state: Floats, action: Floats, target: Floats) -> NDArray[np.float64]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        :return: what :meth:`~persist_sb3.models.prediction.PredictiveModel.white_nll` makes of it, ``(n,)``
        """
        out, expected, units = self._fast_forward(state, action)
        return self.white_nll(out, target, expected, units)

    def disagreement(self, state: Floats, action: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: standard deviation of the members' means, in units of what a linear regression leaves open, averaged
            over numbers and probabilities, ``(n,)``
        """
        return self._disagreement(*self._fast_forward(state, action))

    def _disagreement(self, out: FastDistribution, expected: Floats, units: Units) -> Floats:
        likely = np.exp(self._fast_log_softmax(out.one_hot)), sigmoid(out.binary)
        numbers = out.mean + (expected - expected.mean(axis=0)) / units.scale
        average: Floats = np.concatenate([numbers, *likely], axis=2).std(axis=0).mean(axis=1)
        return average

    def _fast_forward(
        self, state: Floats, action: Floats, members: NDArray[np.intp] | None = None
    ) -> tuple[FastDistribution, Floats, Units]:
        """
        :meth:`forward` and :meth:`_behind` without torch.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param members: which network predicts each row, ``(n,)``. Default: all of them
        :return: what is predicted, what is expected behind the gates, and what numbers are measured in
        """
        given = np.concatenate([state, action], axis=1)
        inputs = np.concatenate([self._fast_standardizer(state), action], axis=1)
        outputs = self._fast(inputs) if members is None else self._of_members(inputs, members)
        out = self._distribution(outputs)
        return out, *self._regressed(out.gate, given, action)

    def _of_members(self, inputs: Floats, members: NDArray[np.intp]) -> Floats:
        """
        Evaluate each row by one member, instead of by all.

        :param inputs: ``(n, inputs)``
        :param members: ``(n,)``
        :return: ``(n, outputs)``
        """
        counts = np.bincount(members, minlength=self.members)
        first = int(counts.argmax())
        if counts[first] == len(members):
            return self._fast(inputs, slice(first, first + 1))[0]
        order = np.argsort(members, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        grid = np.zeros((self.members, counts.max()), dtype=np.intp)
        grid[members, place] = np.arange(len(members))
        return self._fast(inputs[grid])[members, place]
