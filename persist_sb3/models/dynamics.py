"""Probabilistic ensembles of how a part of the state changes: what the internal model and the world model share."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch.nn import functional

from persist_sb3.draws import Noise
from persist_sb3.models.base import Model
from persist_sb3.models.heads import Floats, Heads
from persist_sb3.models.linear import LinearFit
from persist_sb3.models.networks import EnsembleMLP, NumpyEnsemble, Standardizer
from persist_sb3.models.spec import StateSpec

#: Logarithm of the least and the greatest predicted variance, in units of the linear regression's.
LOG_VAR_LOW, LOG_VAR_HIGH = -10.0, 5.0

#: Least variance that surprises are measured in: where there was none yet, the first is finite.
FLOOR = 1e-8

#: So many Discrete actions have a linear regression each; if they are more, all share one.
MAX_GROUPS = 32

_LOG_2_PI = math.log(2.0 * math.pi)


class Distribution(NamedTuple):
    """
    What is predicted, in torch or in NumPy. Of numbers it is what they differ by from a linear regression, divided by
    what they typically differ.

    :param mean: of each number, ``(..., g)``
    :param log_var: of its variance, ``(..., g)``
    :param one_hot: logits of the categorical columns, ``(..., c)``
    :param binary: logits of the binary columns, ``(..., b)``
    """

    mean: Any
    log_var: Any
    one_hot: Any
    binary: Any


def beta_nll(mean: torch.Tensor, log_var: torch.Tensor, target: torch.Tensor, beta: float) -> torch.Tensor:
    """
    The negative log-likelihood of a Gaussian, weighted with its own variance to the power of ``beta``, which is not
    differentiated. Without it (``beta=0``) rare events are explained as noise and never learned; with ``beta=1`` the
    mean learns as from the squared error (Seitzer et al., "On the pitfalls of heteroscedastic uncertainty estimation
    with probabilistic neural networks", ICLR 2022). The constant is left out.

    :param mean: ``(...)``
    :param log_var: ``(...)``
    :param target: ``(...)``
    :param beta: in ``[0, 1]``
    :return: ``(...)``
    """
    nll = 0.5 * (log_var + (target - mean).square() * (-log_var).exp())
    return nll * (beta * log_var.detach()).exp()


class DynamicsModel(Model):
    """
    An ensemble of networks that predict, from ``s`` and an action, the distribution of a part of ``s'``: Gaussians over
    the change of what is a number, categorical and Bernoulli distributions over the rest (the probabilistic ensemble of
    PETS, Chua et al., NeurIPS 2018). The members' own variance is what chance brings; what they disagree about is what
    has not been learned. Numbers are predicted relative to a linear regression, of each Discrete action by itself: it
    is exact where the world is linear (positions that follow velocities, a view that shifts with a move), and gradient
    descent slow.

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

    updates: torch.Tensor

    def __init__(
        self, spec: StateSpec, part: slice, heads: Heads, net_arch: Sequence[int], members: int, **arguments: Any
    ) -> None:
        super().__init__(spec, net_arch=list(net_arch), members=members, **arguments)
        if members < 1:
            raise ValueError(f"members={members} must be at least 1")
        self.part = part
        self.heads = heads
        self.members = members
        self.standardizer = Standardizer(spec.state_dim)
        discrete = isinstance(spec.action_space, spaces.Discrete) and spec.action_dim <= MAX_GROUPS
        groups = spec.action_dim if discrete else 1
        self.linear = LinearFit(groups, spec.state_dim + spec.action_dim, len(heads.numeric))
        self.ensemble = EnsembleMLP(members, [spec.state_dim + spec.action_dim, *net_arch, heads.outputs])
        #: Gradient steps taken.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._fast = NumpyEnsemble(self.ensemble)
        self._fast_standardizer = self.standardizer.numpy()
        cuts = np.cumsum([len(heads.numeric), len(heads.numeric), len(heads.one_hot)])
        self._cuts = cuts.tolist()
        self._starts = np.cumsum([0, *heads.sizes])[:-1]

    # In torch

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> Distribution:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: of every member, ``(e, n, ...)``
        """
        outputs = self.ensemble(torch.cat([self.standardizer(state), action], dim=1))
        mean, raw, one_hot, binary = outputs.tensor_split(self._cuts, dim=2)
        log_var = LOG_VAR_HIGH - functional.softplus(LOG_VAR_HIGH - raw)
        log_var = LOG_VAR_LOW + functional.softplus(log_var - LOG_VAR_LOW)
        return Distribution(mean, log_var, one_hot, binary)

    def predict(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: each member's mean and variance of the predicted part of ``s'``, ``(e, n, m)`` both
        """
        out = self.forward(state, action)
        expected, scale = self._expected(state, action)
        numeric, one_hot, binary = self._columns(state.device)
        mean = state.new_zeros(self.members, len(state), self.heads.width)
        var = torch.zeros_like(mean)
        mean = mean.index_copy(2, numeric, expected + scale * out.mean)
        var = var.index_copy(2, numeric, scale.square() * out.log_var.exp())
        for columns, p in ((one_hot, self._log_softmax(out.one_hot).exp()), (binary, out.binary.sigmoid())):
            mean = mean.index_copy(2, columns, p)
            var = var.index_copy(2, columns, p * (1.0 - p))
        return mean, var

    def loss(
        self, state: torch.Tensor, action: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, beta: float
    ) -> torch.Tensor:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        :param weight: of each row for each member, ``(e, n)``
        :param beta: see :func:`beta_nll`
        :return: the mean over entries and rows, summed over members
        """
        numeric, one_hot, binary = self._columns(state.device)
        out = self.forward(state, action)
        expected, scale = self._expected(state, action)
        scaled = (target[:, numeric] - expected) / scale
        loss = beta_nll(out.mean, out.log_var, scaled, beta).sum(dim=2)
        loss = loss - (self._log_softmax(out.one_hot) * target[:, one_hot]).sum(dim=2)
        switched = target[:, binary].expand_as(out.binary)
        loss = loss + functional.binary_cross_entropy_with_logits(out.binary, switched, reduction="none").sum(dim=2)
        return (weight * loss).mean(dim=1).sum() / self.heads.entries

    def measure(self, state: torch.Tensor, action: torch.Tensor, target: torch.Tensor) -> None:
        """
        Take new data into account in the standardisation and the linear regression; each once.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        """
        self.standardizer.update(state)
        change = (target - state[:, self.part])[:, self._columns(state.device)[0]]
        self.linear.update(torch.cat([state, action], dim=1), change, action.argmax(dim=1))

    def _expected(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        change = self.linear(torch.cat([state, action], dim=1), action.argmax(dim=1))
        numbers = state[:, self.part][:, self._columns(state.device)[0]]
        return numbers + change, (self.linear.residual + FLOOR).sqrt()

    def _columns(self, device: torch.device) -> list[torch.Tensor]:
        return [torch.as_tensor(c, device=device) for c in (self.heads.numeric, self.heads.one_hot, self.heads.binary)]

    def _log_softmax(self, logits: torch.Tensor) -> torch.Tensor:
        groups = logits.split(list(self.heads.sizes), dim=2) if self.heads.sizes else []
        return torch.cat([logits[..., :0], *(group.log_softmax(dim=2) for group in groups)], dim=2)

    # In NumPy

    def sample(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param members: which network predicts each row, ``(n,)``
        :param noise: what chance is drawn from; None for no chance: the mean of numbers, and the likeliest of the rest
        :return: the predicted part of ``s'``, numbers clipped to their bounds, ``(n, m)``
        """
        out = self._distribution(self._of_members(self._inputs(state, action), members))
        change, gumbel, threshold = out.mean, out.one_hot, 0.5
        if noise is not None:
            if len(self.heads.numeric):
                change = change + np.exp(0.5 * out.log_var) * noise.standard_normal(change.shape)
            if self.heads.sizes:
                uniform = np.maximum(noise.random(gumbel.shape), np.finfo(np.float32).tiny)
                gumbel = gumbel - np.log(-np.log(uniform))
            if len(self.heads.binary):
                threshold = noise.random(out.binary.shape)
        heads = self.heads
        expected, scale = self._fast_expected(state, action)
        following = np.empty((len(state), heads.width), dtype=np.float32)
        following[:, heads.numeric] = np.clip(expected + scale * change, heads.low, heads.high)
        following[:, heads.one_hot] = self._likeliest(gumbel)
        following[:, heads.binary] = _sigmoid(out.binary) > threshold
        return following

    def moments(self, state: Floats, action: Floats) -> tuple[Floats, Floats]:
        """
        :meth:`predict` without torch.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: each member's mean and variance, ``(e, n, m)`` both
        """
        out = self._distribution(self._fast(self._inputs(state, action)))
        expected, scale = self._fast_expected(state, action)
        mean = np.empty((self.members, len(state), self.heads.width), dtype=np.float32)
        var = np.empty_like(mean)
        mean[..., self.heads.numeric] = expected + scale * out.mean
        var[..., self.heads.numeric] = np.square(scale) * np.exp(out.log_var)
        one_hot = np.exp(self._fast_log_softmax(out.one_hot))
        for columns, p in ((self.heads.one_hot, one_hot), (self.heads.binary, _sigmoid(out.binary))):
            mean[..., columns] = p
            var[..., columns] = p * (1.0 - p)
        return mean, var

    def nll(self, state: Floats, action: Floats, target: Floats) -> NDArray[np.float64]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        :return: its negative log-likelihood under the mixture of all members, summed over entries, ``(n,)``
        """
        heads = self.heads
        out = self._distribution(self._fast(self._inputs(state, action)))
        expected, scale = self._fast_expected(state, action)
        scaled = (target[:, heads.numeric] - expected) / scale
        gaussian = -0.5 * (out.log_var + np.square(scaled - out.mean) * np.exp(-out.log_var) + _LOG_2_PI) - np.log(
            scale
        )
        likelihood = gaussian.sum(axis=2, dtype=np.float64)
        likelihood += (self._fast_log_softmax(out.one_hot) * target[:, heads.one_hot]).sum(axis=2)
        # log sigmoid(z) of what is 1, log sigmoid(-z) of what is 0
        likelihood -= np.logaddexp(0.0, out.binary * (1.0 - 2.0 * target[:, heads.binary])).sum(axis=2)
        return math.log(self.members) - np.logaddexp.reduce(likelihood, axis=0)

    def disagreement(self, state: Floats, action: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: standard deviation of the members' means, in units of what a linear regression leaves open, averaged
            over numbers and probabilities, ``(n,)``
        """
        out = self._distribution(self._fast(self._inputs(state, action)))
        likely = np.exp(self._fast_log_softmax(out.one_hot)), _sigmoid(out.binary)
        average: Floats = np.concatenate([out.mean, *likely], axis=2).std(axis=0).mean(axis=1)
        return average

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

    def _distribution(self, outputs: Floats) -> Distribution:
        mean, raw, one_hot, binary = np.split(outputs, self._cuts, axis=-1)
        log_var = LOG_VAR_HIGH - _softplus(LOG_VAR_HIGH - raw)
        return Distribution(mean, LOG_VAR_LOW + _softplus(log_var - LOG_VAR_LOW), one_hot, binary)

    def _fast_expected(self, state: Floats, action: Floats) -> tuple[Floats, Floats]:
        change = self.linear.answer(np.concatenate([state, action], axis=1), action.argmax(axis=1))
        scale = np.sqrt(self.linear.residual.numpy() + np.float32(FLOOR))
        return state[:, self.part][:, self.heads.numeric] + change, scale

    def _likeliest(self, logits: Floats) -> Floats:
        """
        :param logits: ``(n, c)``
        :return: one-hot code of the greatest of each group, ``(n, c)``
        """
        if not self.heads.sizes:
            return logits
        greatest = np.maximum.reduceat(logits, self._starts, axis=1)
        return (logits == np.repeat(greatest, self.heads.sizes, axis=1)).astype(np.float32)

    def _fast_log_softmax(self, logits: Floats) -> Floats:
        if not self.heads.sizes:
            return logits
        sizes = self.heads.sizes
        shifted = logits - np.repeat(np.maximum.reduceat(logits, self._starts, axis=-1), sizes, axis=-1)
        total = np.add.reduceat(np.exp(shifted), self._starts, axis=-1)
        normalised: Floats = shifted - np.repeat(np.log(total), sizes, axis=-1)
        return normalised


def _softplus(x: Floats) -> Floats:
    return np.logaddexp(np.float32(0.0), x)


def _sigmoid(x: Floats) -> Floats:
    value: Floats = np.exp(-np.logaddexp(np.float32(0.0), -x))
    return value
