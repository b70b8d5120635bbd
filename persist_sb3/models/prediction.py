"""What models of the next state share: kinds of entries, and numbers relative to a linear regression."""

import math
from abc import abstractmethod
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch.nn import functional

from persist_sb3.draws import Noise
from persist_sb3.models.base import Model
from persist_sb3.models.heads import Floats, Heads, as_slice
from persist_sb3.models.linear import LinearFit
from persist_sb3.models.networks import CLIP, VARIANCE_FLOOR, Standardizer
from persist_sb3.models.prepared import Prepared, constant, few
from persist_sb3.models.spec import StateSpec

#: Logarithm of the least and the greatest predicted variance, in units of the linear regression's.
LOG_VAR_LOW, LOG_VAR_HIGH = -10.0, 5.0

#: Least variance that surprises are measured in: where there was none yet, the first is finite.
FLOOR = 1e-8

#: The least deviation of a whitened number in :meth:`PredictiveModel.white_nll`; the greatest is
#: :data:`~persist_sb3.models.networks.CLIP`.
LEAST_SPREAD = 0.1

#: Least probability of what is not a number, there.
LEAST_PROBABILITY = 1e-4

#: So many Discrete actions have a linear regression each; if they are more, all share one.
MAX_GROUPS = 32

#: What the gates are at first: open, and just beyond, so that noise does not move them. A step of the optimiser moves a
#: gate :data:`GAIN` times as far as any other output: until it has learned where nothing moves, the rest cannot.
OPEN, GAIN = 1.05, 5.0

_LOG_2_PI = math.log(2.0 * math.pi)

_LOW, _ZERO, _ONE, _HIGH = map(constant, (-CLIP, 0.0, 1.0, CLIP))
_OPEN, _GAIN = constant(OPEN), constant(GAIN)
_VAR_LOW, _PRECISION_LOW = constant(math.exp(LOG_VAR_LOW)), constant(math.exp(-LOG_VAR_HIGH))
_WHITE_VAR_LOW, _WHITE_VAR_HIGH = constant(LEAST_SPREAD**2), constant(CLIP**2)
_MINUS_HALF = np.array(-0.5)
#: Its exponential is not too large for float32.
_LARGE = constant(80.0)


class Units(NamedTuple):
    """
    What numbers are measured in.

    :param scale: what each typically differs by from the linear regression, ``(n, g)``, as the others: the same in
        every row, or a single row
    :param mean: its mean in the states so far
    :param deviation: its standard deviation there; 1 before there are any, and the mean 0
    :param ratio: of the squares of ``scale`` and ``deviation``
    """

    scale: Floats
    mean: Floats
    deviation: Floats
    ratio: Floats


class Distribution(NamedTuple):
    """
    What is predicted, in torch. Of numbers it is what they differ by from a linear regression, divided by what they
    typically differ.

    :param mean: of each number, ``(..., g)``
    :param log_var: of its variance, ``(..., g)``
    :param one_hot: logits of the categorical columns, ``(..., c)``
    :param binary: logits of the binary columns, ``(..., b)``
    :param gate: share of the regression's change that takes place, to be clipped to ``[0, 1]``, ``(..., 1)``
    """

    mean: torch.Tensor
    log_var: torch.Tensor
    one_hot: torch.Tensor
    binary: torch.Tensor
    gate: torch.Tensor


class FastDistribution(NamedTuple):
    """:class:`Distribution` without torch, with the variances themselves, and gates that are in ``[0, 1]``."""

    mean: Floats
    var: Floats
    one_hot: Floats
    binary: Floats
    gate: Floats


class Assessment(NamedTuple):
    """
    What a model would have said of what happened.

    :param mean: each member's, of the predicted part of ``s'``, ``(e, n, m)``
    :param var: likewise
    :param nll: negative log-likelihood of what happened, summed over entries, ``(n,)``
    :param disagreement: see :meth:`DynamicsModel.disagreement
        <persist_sb3.models.dynamics.DynamicsModel.disagreement>`, ``(n,)``; None if the model is one of a kind
    """

    mean: Floats
    var: Floats
    nll: NDArray[np.float64]
    disagreement: Floats | None


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


class Clip(torch.autograd.Function):
    """
    To ``[0, 1]``, without a dead end: beyond a limit the gradient passes where it leads back inside, and is 0 where it
    leads further off. A sigmoid learns slowest where it is sure, and a gate begins there.
    """

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate)
        return gate.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gate,), (gradient,) = ctx.saved_tensors, gradients
        outwards = ((gate > 1.0) & (gradient < 0.0)) | ((gate < 0.0) & (gradient > 0.0))
        return gradient.masked_fill(outwards, 0.0)


class PredictiveModel(Model):
    """
    Base of the models that predict, from ``s`` and an action, the distribution of a part of ``s'``: Gaussians over the
    change of what is a number, categorical and Bernoulli distributions over the rest. Numbers are predicted relative to
    a linear regression, of each Discrete action by itself: it is exact where the world is linear (positions that follow
    velocities, a view that shifts with a move), and gradient descent slow. A gate, one a row, shuts the regression's
    change off where an action has no effect, before a wall for instance: to undo it column by column would take far
    longer.

    A subclass makes the :attr:`outputs` numbers that describe the distribution, the gate last.

    :param spec: the environment's state and actions
    :param part: which columns of ``s`` are predicted
    :param heads: of those columns
    :param arguments: the other arguments of the subclass's constructor
    """

    updates: torch.Tensor
    # Which columns are predicted how, on the device of the model.
    _numeric: torch.Tensor
    _one_hot: torch.Tensor
    _binary: torch.Tensor

    def __init__(self, spec: StateSpec, part: slice, heads: Heads, **arguments: Any) -> None:
        super().__init__(spec, **arguments)
        self.part = part
        self.heads = heads
        for name in ("numeric", "one_hot", "binary"):
            self.register_buffer(f"_{name}", torch.tensor(getattr(heads, name)), persistent=False)
        self.standardizer = Standardizer(spec.state_dim)
        discrete = isinstance(spec.action_space, spaces.Discrete) and spec.action_dim <= MAX_GROUPS
        groups = spec.action_dim if discrete else 1
        self.linear = LinearFit(groups, spec.state_dim + spec.action_dim, len(heads.numeric))
        self._answer = self.linear.answer
        #: Gradient steps taken.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        cuts = np.cumsum([len(heads.numeric), len(heads.numeric), len(heads.one_hot), len(heads.binary)])
        self._cuts = cuts.tolist()
        self._slices = [slice(*ends) for ends in pairwise([0, *self._cuts, None])]
        #: Numbers that a network has to give for each row.
        self.outputs = heads.outputs + 1
        self._starts = np.cumsum([0, *heads.sizes])[:-1]
        # Which columns of the part are numbers, codes and bits, and where the numbers are in the state.
        self._columns = as_slice(heads.numeric), as_slice(heads.one_hot), as_slice(heads.binary)
        self._in_state = as_slice(np.arange(spec.state_dim)[part][heads.numeric])
        self._units = Prepared(self._measured, self.linear.count, self.linear.mean, self.linear.residual)

    # In torch

    def measure(self, state: torch.Tensor, action: torch.Tensor, target: torch.Tensor) -> None:
        """
        Take new data into account in the standardisation and the linear regression; each once.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        """
        self.standardizer.update(self._seen(state))
        change = (target - state[:, self.part])[:, self._numeric]
        self.linear.update(torch.cat([state, action], dim=1), change, action.argmax(dim=1))

    def _seen(self, state: torch.Tensor) -> torch.Tensor:
        """
        :param state: ``(..., D)``
        :return: what the networks see of it, before it is standardised, ``(..., D)``
        """
        return state

    def _expected(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: what the regression expects of numbers, ``(n, g)``, and what they typically differ by, ``(g,)``
        """
        change = self.linear(torch.cat([state, action], dim=1), action.argmax(dim=1))
        numbers = state[:, self.part][:, self._numeric]
        return numbers + change, (self.linear.residual + FLOOR).sqrt()

    def _split(self, outputs: torch.Tensor) -> Distribution:
        """
        :param outputs: ``(..., outputs)``
        :return: what they describe
        """
        mean, raw, one_hot, binary, gate = outputs.tensor_split(self._cuts, dim=-1)
        log_var = LOG_VAR_HIGH - functional.softplus(LOG_VAR_HIGH - raw)
        log_var = LOG_VAR_LOW + functional.softplus(log_var - LOG_VAR_LOW)
        return Distribution(mean, log_var, one_hot, binary, OPEN + GAIN * gate)

    def _behind(
        self, gate: torch.Tensor, state: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param gate: in ``[0, 1]``, ``(e, n, 1)``
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: what is then expected of numbers, ``(e, n, g)``, and what they typically differ by, ``(g,)``
        """
        expected, scale = self._expected(state, action)
        numbers = state[:, self.part][:, self._numeric]
        return expected - (1.0 - gate) * (expected - numbers), scale

    def _describe(
        self, out: Distribution, expected: torch.Tensor, scale: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param out: what is predicted, ``(e, n, ...)``
        :param expected: what the regression expects behind the gates, ``(n, g)`` or ``(e, n, g)``
        :param scale: what numbers typically differ by from it, ``(g,)``
        :return: mean and variance, ``(e, n, m)`` both
        """
        mean = expected.new_zeros(*out.mean.shape[:-1], self.heads.width)
        var = torch.zeros_like(mean)
        mean = mean.index_copy(2, self._numeric, expected + scale * out.mean)
        var = var.index_copy(2, self._numeric, scale.square() * out.log_var.exp())
        one_hot = self._log_softmax(out.one_hot).exp()
        for columns, p in ((self._one_hot, one_hot), (self._binary, out.binary.sigmoid())):
            mean = mean.index_copy(2, columns, p)
            var = var.index_copy(2, columns, p * (1.0 - p))
        return mean, var

    def _losses(
        self, out: Distribution, target: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor, beta: float
    ) -> torch.Tensor:
        """
        :param out: what is predicted, ``(e, n, ...)``
        :param target: what happened, ``(n, m)``
        :param expected: what the regression expects behind the gates, ``(n, g)`` or ``(e, n, g)``
        :param scale: what numbers typically differ by from it, ``(g,)``
        :param beta: see :func:`beta_nll`
        :return: summed over entries, ``(e, n)``
        """
        scaled = (target[:, self._numeric] - expected) / scale
        loss = beta_nll(out.mean, out.log_var, scaled, beta).sum(dim=2)
        loss = loss - (self._log_softmax(out.one_hot) * target[:, self._one_hot]).sum(dim=2)
        switched = target[:, self._binary].expand_as(out.binary)
        return loss + functional.binary_cross_entropy_with_logits(out.binary, switched, reduction="none").sum(dim=2)

    def _log_softmax(self, logits: torch.Tensor) -> torch.Tensor:
        groups = logits.split(list(self.heads.sizes), dim=2) if self.heads.sizes else []
        return torch.cat([logits[..., :0], *(group.log_softmax(dim=2) for group in groups)], dim=2)

    # In NumPy

    @abstractmethod
    def moments(self, state: Floats, action: Floats, *belief: Any) -> tuple[Floats, Floats]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param belief: what else the model knows of the episodes, if it keeps that
        :return: each member's mean and variance of the predicted part of ``s'``, ``(e, n, m)`` both
        """

    @abstractmethod
    def nll(self, state: Floats, action: Floats, target: Floats, *belief: Any) -> NDArray[np.float64]:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        :param belief: what else the model knows of the episodes, if it keeps that
        :return: its negative log-likelihood, summed over entries, ``(n,)``
        """

    def assess(self, state: Floats, action: Floats, target: Floats, *belief: Any) -> Assessment:
        """
        :meth:`moments` and :meth:`nll` at once.

        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :param target: the predicted part of ``s'``, ``(n, m)``
        :param belief: what else the model knows of the episodes, if it keeps that
        :return: what it would have said
        """
        nll = self.nll(state, action, target, *belief)
        return Assessment(*self.moments(state, action, *belief), nll, None)

    def regress(self, state: Floats, action: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: what the linear regression by itself expects of the numbers in ``s'``, ``(n, g)``
        """
        change = self._answer(np.concatenate([state, action], axis=1), action.argmax(axis=1))
        numbers: Floats = state[:, self._in_state] + change
        return numbers

    def _distribution(self, outputs: Floats) -> FastDistribution:
        mean, raw, one_hot, binary, gate = (outputs[..., part] for part in self._slices)
        gate = _GAIN * gate
        gate += _OPEN
        return FastDistribution(mean, _variance(raw), one_hot, binary, gate.clip(_ZERO, _ONE, out=gate))

    def _fast_behind(self, gate: Floats, state: Floats, action: Floats) -> tuple[Floats, Units]:
        """
        :meth:`_behind` without torch.

        :param gate: in ``[0, 1]``, ``(..., n, 1)``
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: what is then expected of numbers, ``(..., n, g)``, and what they are measured in
        """
        return self._regressed(gate, np.concatenate([state, action], axis=1), action)

    def _regressed(self, gate: Floats, given: Floats, action: Floats) -> tuple[Floats, Units]:
        """
        :param gate: see :meth:`_fast_behind`
        :param given: state and action in a row, ``(n, D + A)``
        :param action: encoded, ``(n, A)``
        :return: as :meth:`_fast_behind`
        """
        behind: Floats = gate * self._answer(given, action.argmax(axis=1))
        behind += given[:, self._in_state]
        return behind, self._units(few(len(given)))

    def _draw(self, out: FastDistribution, expected: Floats, units: Units, noise: Noise | None) -> Floats:
        """
        :param out: what is predicted, ``(n, ...)``
        :param expected: what the regression expects behind the gates, ``(n, g)`` or ``(e, n, g)``
        :param units: of the numbers
        :param noise: what chance is drawn from; None for no chance: the mean of numbers, and the likeliest of the rest
        :return: the predicted part of ``s'``, numbers clipped to their bounds, ``(n, m)``
        """
        change, gumbel, threshold = out.mean, out.one_hot, 0.5
        if noise is not None:
            if len(self.heads.numeric):
                change = change + np.sqrt(out.var) * noise.standard_normal(change.shape)
            if self.heads.sizes:
                uniform = np.maximum(noise.random(gumbel.shape), np.finfo(np.float32).tiny)
                gumbel = gumbel - np.log(-np.log(uniform))
            if len(self.heads.binary):
                threshold = noise.random(out.binary.shape)
        heads = self.heads
        following = np.empty((len(expected), heads.width), dtype=np.float32)
        numeric, one_hot, binary = self._columns
        following[:, numeric] = np.clip(expected + units.scale * change, heads.low, heads.high)
        following[:, one_hot] = self._likeliest(gumbel)
        following[:, binary] = sigmoid(out.binary) > threshold
        return following

    def _moments(self, out: FastDistribution, expected: Floats, units: Units) -> tuple[Floats, Floats]:
        """
        :meth:`_describe` without torch.

        :param out: what is predicted, ``(e, n, ...)``
        :param expected: what the regression expects behind the gates, ``(n, g)`` or ``(e, n, g)``
        :param units: of the numbers
        :return: mean and variance, ``(e, n, m)`` both
        """
        mean = np.empty((*out.mean.shape[:-1], self.heads.width), dtype=np.float32)
        var = np.empty_like(mean)
        numeric, one_hot, binary = self._columns
        mean[..., numeric] = expected + units.scale * out.mean
        var[..., numeric] = np.square(units.scale) * out.var
        likely = np.exp(self._fast_log_softmax(out.one_hot))
        for columns, p in ((one_hot, likely), (binary, sigmoid(out.binary))):
            mean[..., columns] = p
            var[..., columns] = p * (1.0 - p)
        return mean, var

    def _log_likelihood(
        self, out: FastDistribution, target: Floats, expected: Floats, units: Units
    ) -> NDArray[np.float64]:
        """
        :param out: what is predicted, ``(e, n, ...)``; the last numbers may be left out
        :param target: what happened, ``(n, m)``
        :param expected: what the regression expects behind the gates, ``(n, g)`` or ``(e, n, g)``
        :param units: of the numbers
        :return: summed over entries, ``(e, n)``
        """
        heads = self.heads
        scaled = (self._numbers(target, out.mean.shape[2]) - expected) / units.scale
        gaussian = -0.5 * (np.log(out.var) + np.square(scaled - out.mean) / out.var + _LOG_2_PI) - np.log(units.scale)
        likelihood: NDArray[np.float64] = gaussian.sum(axis=2, dtype=np.float64)
        likelihood += (self._fast_log_softmax(out.one_hot) * target[:, heads.one_hot]).sum(axis=2)
        # log sigmoid(z) of what is 1, log sigmoid(-z) of what is 0
        likelihood -= np.logaddexp(0.0, out.binary * (1.0 - 2.0 * target[:, heads.binary])).sum(axis=2)
        return likelihood

    def _numbers(self, target: Floats, count: int) -> Floats:
        """
        :param target: what happened, ``(n, m)``; the last numbers may be left out
        :param count: how many there are, ``g``
        :return: they, ``(n, g)``
        """
        numeric = self.heads.numeric
        return target[:, self._columns[0] if count == len(numeric) else numeric[:count]]

    def white_nll(self, out: FastDistribution, target: Floats, expected: Floats, units: Units) -> NDArray[np.float64]:
        """
        A likelihood that is fit to be a reward: bounded, and in no unit. Numbers are whitened and clipped, as inputs
        are, since the density of a number, and with it the sign of its logarithm, depends on the unit that it is
        measured in; predicted deviations are bounded to ``[0.1, 5]`` of the number's own, without which a number that
        never changes would outweigh all others; and the mean is taken over entries, so that their count does not set
        the size of the reward. A number of which the model knows no more than its distribution so far costs 1.42 nats
        on average, one that it knows exactly -1.38.

        :param out: what is predicted, ``(e, n, ...)``; the last numbers may be left out
        :param target: what happened, ``(n, m)``
        :param expected: what the regression expects, ``(n, g)`` or ``(e, n, g)``
        :param units: of the numbers
        :return: negative log-likelihood under the mixture of all ``e``, mean over entries, in nats, ``(n,)``
        """
        heads = self.heads
        count = out.mean.shape[2]
        scale, mean, deviation, ratio = units
        terms = scale * out.mean
        terms += expected
        terms -= mean
        terms /= deviation
        happened = self._numbers(target, count) - mean
        happened /= deviation
        terms.clip(_LOW, _HIGH, out=terms)
        terms -= happened.clip(_LOW, _HIGH, out=happened)
        var = ratio * out.var
        var.clip(_WHITE_VAR_LOW, _WHITE_VAR_HIGH, out=var)
        squares = np.vecdot(terms, terms / var)
        squares += np.add.reduce(np.log(var, out=var), axis=2)
        likelihood = squares * _MINUS_HALF
        least = math.log(LEAST_PROBABILITY)
        if heads.sizes:
            chosen = self._fast_log_softmax(out.one_hot) * target[:, heads.one_hot]
            likelihood += np.add.reduceat(chosen, self._starts, axis=2).clip(least).sum(axis=2)
        if len(heads.binary):
            chosen = -np.logaddexp(0.0, out.binary * (1.0 - 2.0 * target[:, heads.binary]))
            likelihood += chosen.clip(least).sum(axis=2)
        entries = count + len(heads.sizes) + len(heads.binary)
        constant = math.log(len(out.mean)) + 0.5 * count * _LOG_2_PI
        return (constant - np.logaddexp.reduce(likelihood, axis=0)) / entries

    def _measured(
        self,
        count: NDArray[np.float64],
        means: NDArray[np.float64],
        residual: NDArray[np.float32],
        rows: int,
    ) -> Units:
        """
        :param count: see :class:`~persist_sb3.models.linear.LinearFit`, as the others
        :param means: likewise
        :param residual: likewise
        :param rows: how many they are for, ``n``
        :return: what follows
        """
        squares = self.linear.products[0].numpy().diagonal()[self._in_state]
        var = squares / count[0] if count[0] else np.ones(len(squares))
        deviation = np.sqrt(var + VARIANCE_FLOOR).astype(np.float32)
        scale = np.sqrt(residual + np.float32(FLOOR))
        mean = means[0, self._in_state].astype(np.float32)
        return Units(*np.stack([scale, mean, deviation, np.square(scale / deviation)])[:, None].repeat(rows, axis=1))

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


def _variance(raw: Floats) -> Floats:
    """
    The exponential of the two softplus in :meth:`PredictiveModel._split`: ``e^low + 1 / (e^-high + e^-raw)``.

    :param raw: as a network has it, any shape
    :return: a variance
    """
    value = -raw
    np.minimum(value, _LARGE, out=value)
    np.exp(value, out=value)
    value += _PRECISION_LOW
    np.reciprocal(value, out=value)
    value += _VAR_LOW
    return value


def sigmoid(x: Floats) -> Floats:
    """
    :param x: any shape
    :return: ``1 / (1 + exp(-x))``
    """
    value: Floats = np.exp(-np.logaddexp(np.float32(0.0), -x))
    return value
