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
from persist_sb3.models.prediction import Distribution, PredictiveModel, sigmoid
from persist_sb3.models.spec import StateSpec

#: What the gates' logits are at first: open. The sigmoid is stretched beyond 0 and 1 and clipped, so that a gate can be
#: fully open and fully shut (Louizos, Welling & Kingma, "Learning sparse neural networks through L0 regularization",
#: ICLR 2018).
OPEN, STRETCH = 4.0, 0.025


class DynamicsModel(PredictiveModel):
    """
    An ensemble of networks that predict, from ``s`` and an action, the distribution of a part of ``s'`` (the
    probabilistic ensemble of PETS, Chua et al., NeurIPS 2018). The members' own variance is what chance brings; what
    they disagree about is what has not been learned. A gate, one a row and member, shuts the linear regression's change
    off where an action has no effect, before a wall for instance: to undo it column by column would take far longer.

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
        self.ensemble = EnsembleMLP(members, [spec.state_dim + spec.action_dim, *net_arch, heads.outputs + 1])
        with torch.no_grad():
            self.ensemble.biases[-1][..., -1] = OPEN
        self._fast = NumpyEnsemble(self.ensemble)
        self._fast_standardizer = self.standardizer.numpy()

    # In torch

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> Distribution:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: of every member, ``(e, n, ...)``
        """
        return self._gated(state, action)[0]

    def _gated(self, state: torch.Tensor, action: torch.Tensor) -> tuple[Distribution, torch.Tensor]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: what every member predicts, ``(e, n, ...)``, and its gate, not clipped yet, ``(e, n, 1)``
        """
        outputs = self.ensemble(torch.cat([self.standardizer(state), action], dim=1))
        return self._split(outputs[..., :-1]), (1.0 + 2.0 * STRETCH) * outputs[..., -1:].sigmoid() - STRETCH

    def _behind(
        self, gate: torch.Tensor, state: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param gate: share of the regression's change that takes place, ``(e, n, 1)``
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: what is then expected of numbers, ``(e, n, g)``, and what they typically differ by, ``(g,)``
        """
        expected, scale = self._expected(state, action)
        numbers = state[:, self.part][:, self._columns(state.device)[0]]
        return expected - (1.0 - gate) * (expected - numbers), scale

    def predict(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: each member's mean and variance of the predicted part of ``s'``, ``(e, n, m)`` both
        """
        out, gate = self._gated(state, action)
        return self._describe(out, *self._behind(gate.clamp(0.0, 1.0), state, action))

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
        out, gate = self._gated(state, action)
        # Clipped forward and not backward: a gate that is fully open can still learn to shut.
        clipped = gate + (gate.clamp(0.0, 1.0) - gate).detach()
        losses = self._losses(out, target, *self._behind(clipped, state, action), beta)
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
        return self._draw(*self._fast_gated(state, action, members), noise)

    def moments(self, state: Floats, action: Floats, members: NDArray[np.intp] | None = None) -> tuple[Floats, Floats]:
        """
        :meth:`predict` without torch.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param members: which network predicts each row, ``(n,)``. Default: all of them
        :return: each member's mean and variance, ``(e, n, m)`` both; with ``members``, those of each row's, ``(n, m)``
        """
        return self._moments(*self._fast_gated(state, action, members))

    def nll(self, state: Floats, action: Floats, target: Floats) -> NDArray[np.float64]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        :return: its negative log-likelihood under the mixture of all members, summed over entries, ``(n,)``
        """
        out, expected, scale = self._fast_gated(state, action)
        likelihood = self._log_likelihood(out, target, expected, scale)
        return math.log(self.members) - np.logaddexp.reduce(likelihood, axis=0)

    def surprise(self, state: Floats, action: Floats, target: Floats) -> NDArray[np.float64]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        :return: what :meth:`~persist_sb3.models.prediction.PredictiveModel.white_nll` makes of it, ``(n,)``
        """
        out, expected, scale = self._fast_gated(state, action)
        return self.white_nll(out, target, expected, scale)

    def disagreement(self, state: Floats, action: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: standard deviation of the members' means, in units of what a linear regression leaves open, averaged
            over numbers and probabilities, ``(n,)``
        """
        out, expected, scale = self._fast_gated(state, action)
        likely = np.exp(self._fast_log_softmax(out.one_hot)), sigmoid(out.binary)
        numbers = out.mean + (expected - expected.mean(axis=0)) / scale
        average: Floats = np.concatenate([numbers, *likely], axis=2).std(axis=0).mean(axis=1)
        return average

    def _fast_gated(
        self, state: Floats, action: Floats, members: NDArray[np.intp] | None = None
    ) -> tuple[Distribution, Floats, Floats]:
        """
        :meth:`_gated` and :meth:`_behind` without torch.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param members: which network predicts each row, ``(n,)``. Default: all of them
        :return: what is predicted, what is expected behind the gates, and what numbers typically differ by from it
        """
        inputs = self._inputs(state, action)
        outputs = self._fast(inputs) if members is None else self._of_members(inputs, members)
        expected, scale = self._fast_expected(state, action)
        shut = 1.0 - ((1.0 + 2.0 * STRETCH) * sigmoid(outputs[..., -1:]) - STRETCH).clip(0.0, 1.0)
        behind: Floats = expected - shut * (expected - state[:, self.part][:, self.heads.numeric])
        return self._distribution(outputs[..., :-1]), behind, scale

    def _inputs(self, state: Floats, action: Floats) -> Floats:
        return np.concatenate([self._fast_standardizer(state), action], axis=1)

    def _of_members(self, inputs: Floats, members: NDArray[np.intp]) -> Floats:
        """
        Evaluate each row by one member, instead of by all.

        :param inputs: ``(n, inputs)``
        :param members: ``(n,)``
        :return: ``(n, outputs)``
        """
        counts = np.bincount(members, minlength=self.members)
        order = np.argsort(members, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        grid = np.zeros((self.members, counts.max()), dtype=np.intp)
        grid[members, place] = np.arange(len(members))
        return self._fast(inputs[grid])[members, place]
