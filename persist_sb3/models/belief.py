"""A belief: what can be told about hidden internal variables from what the agent has seen and done."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from persist_sb3.batch import Batch, flatten
from persist_sb3.draws import Noise
from persist_sb3.models.base import Model
from persist_sb3.models.networks import Standardizer
from persist_sb3.models.prediction import FLOOR, LOG_VAR_HIGH, LOG_VAR_LOW, beta_nll
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.paths import locate, parse_path
from persist_sb3.viability import ViabilitySet, unknown_name


class GRUBelief(Model):
    """
    Estimates internal variables that the agent does not see: a gated recurrent unit (Cho et al., "Learning phrase
    representations using RNN encoder-decoder for statistical machine translation", EMNLP 2014) reads what it sees and
    does, and after every observation gives the mean and the variance of a Gaussian for each variable. The truth is
    known in training only.

    The input of a step is the observation and the action before it, encoded; at an episode's beginning there is no
    action, and the memory is zero.

    :meth:`forward` and :meth:`loss` are torch's; :meth:`advance` is NumPy, for the small batches of a layer.

    :param spec: what the agent sees (without the belief), does, and has to keep within limits
    :param variables: names of those to estimate, ``k``
    :param memory: length of the recurrent state, ``H``
    :param net_arch: sizes of the layers between the input and the recurrent unit
    :raises ValueError: if there is no such variable, or none is named, or a size is below 1
    """

    updates: torch.Tensor

    def __init__(
        self, spec: StateSpec, variables: Sequence[str], memory: int = 64, net_arch: Sequence[int] = (64,)
    ) -> None:
        super().__init__(spec, variables=list(variables), memory=memory, net_arch=list(net_arch))
        for name in variables:
            if name not in spec.viability.dims:
                raise ValueError(unknown_name(name, spec.viability.dims))
        if not variables:
            raise ValueError("variables=[] names nothing to estimate")
        if min(memory, *net_arch, 1) < 1:
            raise ValueError(f"memory={memory} and net_arch={list(net_arch)} must be at least 1")
        self.variables = tuple(variables)
        #: Their columns among the internal variables, ``(k,)``.
        self.columns = np.array([spec.viability.dims.index(name) for name in variables])
        self.memory = memory
        self.standardizer = Standardizer(spec.observation_dim)
        #: Mean and variance of the truth.
        self.target = Standardizer(len(self.variables))
        sizes = [spec.observation_dim + spec.action_dim, *net_arch]
        self.encoder = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.gru = nn.GRU(sizes[-1], memory, batch_first=True)
        self.head = nn.Linear(memory, 2 * len(self.variables))
        #: Gradient steps taken.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._fast_standardizer = self.standardizer.numpy()

    def seen(self, observation: Batch) -> Floats:
        """
        :param observation: as :class:`~persist_sb3.wrappers.BeliefState` shows it, perhaps with what layers around it
            add: a Dict, or a flat Box that begins with what the estimate goes by, ``(n, ...)``
        :return: what the estimate goes by, ``(n, m)``
        """
        if isinstance(observation, dict):
            return flatten(self.spec.observation_space, observation).astype(np.float32, copy=False)
        return observation[:, : self.spec.observation_dim].astype(np.float32, copy=False)

    # In torch

    def forward(
        self, observation: torch.Tensor, action: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :param observation: flattened, ``(b, l, m)``
        :param action: the one before each, encoded; zeros where there is none, ``(b, l, A)``
        :param memory: before the first, ``(b, H)``
        :return: mean and logarithm of the variance of the variables, in units of the truth's standard deviation from
            its mean, ``(b, l, k)`` both
        """
        x = torch.cat([self.standardizer(observation), action], dim=2)
        for layer in self.encoder:
            x = torch.relu(layer(x))
        following, _ = self.gru(x, memory[None])
        mean, raw = self.head(following).chunk(2, dim=2)
        log_var = LOG_VAR_HIGH - functional.softplus(LOG_VAR_HIGH - raw)
        return mean, LOG_VAR_LOW + functional.softplus(log_var - LOG_VAR_LOW)

    def loss(
        self,
        observation: torch.Tensor,
        action: torch.Tensor,
        memory: torch.Tensor,
        truth: torch.Tensor,
        weight: torch.Tensor,
        beta: float,
    ) -> torch.Tensor:
        """
        :param observation: flattened, ``(b, l, m)``
        :param action: the one before each, encoded, ``(b, l, A)``
        :param memory: before the first, ``(b, H)``
        :param truth: the variables at each observation, ``(b, l, k)``
        :param weight: of each, ``(b, l)``
        :param beta: see :func:`~persist_sb3.models.prediction.beta_nll`
        :return: the weighted mean over what was observed, and the mean over variables
        """
        mean, log_var = self.forward(observation, action, memory)
        scaled = (truth - self.target.mean) / (self.target.var + FLOOR).sqrt()
        loss = beta_nll(mean, log_var, scaled, beta).mean(dim=2)
        return (loss * weight).sum() / weight.sum().clamp(min=1.0)

    def measure(self, observation: torch.Tensor, truth: torch.Tensor) -> None:
        """
        Take new data into account in the standardisation; each once.

        :param observation: flattened, ``(n, m)``
        :param truth: the variables, ``(n, k)``
        """
        self.standardizer.update(observation)
        self.target.update(truth)

    # In NumPy

    def advance(self, observation: Floats, action: Floats, memory: Floats) -> tuple[Floats, Floats, Floats]:
        """
        One observation more.

        :param observation: flattened, ``(n, m)``
        :param action: the one before, encoded; zeros where there is none, ``(n, A)``
        :param memory: ``(n, H)``
        :return: the memory after it, ``(n, H)``; mean and variance of the variables, ``(n, k)`` both
        """
        x = np.concatenate([self._fast_standardizer(observation), action], axis=1)
        layers: Any = self.encoder
        for layer in layers:
            x = _linear(x, layer.weight, layer.bias)
            np.maximum(x, 0.0, out=x)
        gru: Any = self.gru
        size = self.memory
        given = _linear(x, gru.weight_ih_l0, gru.bias_ih_l0)
        kept = _linear(memory, gru.weight_hh_l0, gru.bias_hh_l0)
        gates = _sigmoid(given[:, : 2 * size] + kept[:, : 2 * size])
        new = np.tanh(given[:, 2 * size :] + gates[:, :size] * kept[:, 2 * size :])
        memory = new + gates[:, size:] * (memory - new)
        out = _linear(memory, self.head.weight, self.head.bias)
        mean, raw = out[:, : len(self.variables)], out[:, len(self.variables) :]
        zero = np.float32(0.0)
        log_var = LOG_VAR_HIGH - np.logaddexp(zero, LOG_VAR_HIGH - raw)
        log_var = LOG_VAR_LOW + np.logaddexp(zero, log_var - LOG_VAR_LOW)
        unit = self.target.var.numpy() + np.float32(FLOOR)
        return memory, self.target.mean.numpy() + np.sqrt(unit) * mean, unit * np.exp(log_var)


class BeliefColumns(NamedTuple):
    """
    Where a state ``s = [o, x]`` whose observation shows a belief (see :class:`~persist_sb3.wrappers.BeliefState`) keeps
    what.

    :param mean: columns of the means, ``(k,)``
    :param variance: of the variances, ``(k,)``
    :param variable: of the variables themselves, in ``x``, ``(k,)``
    :param low: least values that the variables can take, ``(k,)``
    :param high: greatest, ``(k,)``
    """

    mean: NDArray[np.intp]
    variance: NDArray[np.intp]
    variable: NDArray[np.intp]
    low: Floats
    high: Floats

    @classmethod
    def find(cls, spec: StateSpec, entries: Mapping[str, tuple[str, str]]) -> "BeliefColumns":
        """
        :param spec: of the state
        :param entries: where the observation shows mean and variance, by variable
        :return: the columns
        """
        space, dims = spec.observation_space, spec.viability.dims

        def shown(which: int) -> NDArray[np.intp]:
            found = [locate(parse_path(paths[which])[1], space).columns(space)[0] for paths in entries.values()]
            return np.array(found, dtype=np.intp)

        variables = np.array([dims.index(name) for name in entries], dtype=np.intp)
        low, high = spec.viability.low[variables], spec.viability.high[variables]
        return cls(
            shown(0), shown(1), spec.observation_dim + variables, low.astype(np.float32), high.astype(np.float32)
        )

    def believed(self, state: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :return: the same with the mean of each hidden variable in place of its value, which the agent does not know
        """
        state = state.copy()
        state[:, self.variable] = state[:, self.mean]
        return state

    def sample(self, state: Floats, noise: Noise) -> Floats:
        """
        :param state: ``(n, D)``
        :param noise: what chance is drawn from
        :return: the same with the hidden variables drawn from the belief's Gaussian about where ``x`` has them, kept to
            their physical range
        """
        state = state.copy()
        spread = np.sqrt(state[:, self.variance]) * noise.standard_normal((len(state), len(self.variable)))
        state[:, self.variable] = (state[:, self.variable] + spread).clip(self.low, self.high)
        return state


def prior(viability: ViabilitySet) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    What is believed of internal variables before anything is seen or learned: around the setpoint, and as widely as if
    anything in the physical range were as likely.

    :param viability: declares both. Without a setpoint the middle of the range, or 0, stands for it; a range that is
        not bounded counts as a standard deviation of 1
    :return: mean and variance, ``(d,)`` both
    """
    width = viability.high - viability.low
    bounded = np.isfinite(width)
    middle = np.where(bounded, viability.low + np.where(bounded, width, 0.0) / 2.0, 0.0)
    mean = middle if viability.mu is None else np.asarray(viability.mu, dtype=np.float64)
    return mean, np.where(bounded, np.where(bounded, width, 0.0) ** 2 / 12.0, 1.0)


def _linear(x: Floats, weight: torch.Tensor, bias: torch.Tensor) -> Floats:
    product: Floats = x @ weight.detach().numpy().T
    product += bias.detach().numpy()
    return product


def _sigmoid(x: Floats) -> Floats:
    half = np.float32(0.5)
    value: Floats = half * np.tanh(half * x) + half
    return value
