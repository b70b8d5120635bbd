"""Ensembles of multilayer perceptrons, evaluated all members at once, in torch and in NumPy."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from persist_sb3.models.prepared import Prepared, Views, constant, few

Floats = NDArray[np.float32]

#: Standardised inputs are clipped to this, as RND does (Burda et al., 2019).
CLIP = 5.0

#: Keeps an input that has not varied yet from being blown up when it does.
VARIANCE_FLOOR = 1e-4

#: Added to the mean square by which a layer is normalised.
NORM_FLOOR = 1e-4

_LOW, _ZERO, _HIGH = map(constant, (-CLIP, 0.0, CLIP))

_ALL = slice(None)


class Statistics(nn.Module):
    """Base of what is measured, and not trained. It moves to another device in place, as parameters do."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Statistics":
        # Whoever has a view of the numbers keeps it.
        for buffer in self.buffers(recurse=False):
            buffer.data = fn(buffer)
        return self


class Standardizer(Statistics):
    """
    Shifts and scales inputs to zero mean and unit variance, as measured on the data given to :meth:`update`, and clips
    them to :data:`CLIP`. Before any data it changes nothing but the clipping.

    :param size: number of inputs
    """

    mean: torch.Tensor
    var: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, batch: torch.Tensor) -> None:
        """
        Take new data into account (Chan, Golub & LeVeque, 1979).

        :param batch: ``(n, size)``
        """
        n = len(batch)
        mean = batch.mean(dim=0)
        var = (batch - mean).square().mean(dim=0)  # torch.var_mean takes six times as long
        total = self.count + n
        delta = mean - self.mean
        spread = self.var * self.count + var * n + delta.square() * self.count * n / total
        self.mean += delta * n / total
        self.var.copy_(spread / total)
        self.count.copy_(total)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.mean) / (self.var + VARIANCE_FLOOR).sqrt()).clamp(-CLIP, CLIP)

    def numpy(self) -> "NumpyStandardizer":
        """
        :return: the same for NumPy arrays, on views of the moments
        """
        return NumpyStandardizer(self)


class EnsembleMLP(nn.Module):
    """
    ``e`` perceptrons of the same shape and different weights, ReLU between layers, in one batched product a layer.

    :param members: how many, ``e``
    :param sizes: of the input, each hidden layer, and the output
    """

    def __init__(self, members: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.members = members
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(members, *pair)) for pair in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(members, 1, size)) for size in sizes[1:])
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1.0 / math.sqrt(weight.shape[1])  # as torch.nn.Linear
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        :param x: ``(n, inputs)``, the same for every member, or ``(e, n, inputs)``
        :return: ``(e, n, outputs)``
        """
        if x.dim() == 2:
            x = x.expand(self.members, *x.shape)
        last = len(self.weights) - 1
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if depth < last:
                x = torch.relu(x)
        return x

    @torch.no_grad()
    def backpropagate(self, x: torch.Tensor, error: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """
        Set the gradients of the last member's parameters to those of a mean square error, as ``backward()`` would, in a
        third of its time: nothing is recorded, and nothing propagated through the other members, whose gradients are
        exactly 0.

        :param x: ``(n, inputs)``
        :param error: of the last member, ``(n, outputs)``, by the outputs of all, ``(e, n, outputs)``
        :return: its mean square
        """
        layers = list(zip(self.weights, self.biases, strict=True))
        x = x.expand(self.members, *x.shape)
        inputs: list[torch.Tensor] = []
        for weight, bias in layers:
            # The last layer has no ReLU, so it comes before every other.
            x = x.relu() if inputs else x
            inputs.append(x[-1])
            x = torch.baddbmm(bias, x, weight)
        gap = error(x)
        delta = gap * (2.0 / gap.numel())
        for (weight, bias), layer_input in zip(reversed(layers), reversed(inputs), strict=True):
            for parameter in (weight, bias):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            assert weight.grad is not None and bias.grad is not None
            torch.mm(layer_input.T, delta, out=weight.grad[-1])
            torch.sum(delta, dim=0, keepdim=True, out=bias.grad[-1])
            if weight is not layers[0][0]:
                # What autograd calls for a ReLU, in a fifth of the time of multiplying with a mask.
                delta = torch.ops.aten.threshold_backward(delta @ weight[-1].T, layer_input, 0.0)
        return float(gap.square().mean())


def symlog(x: torch.Tensor) -> torch.Tensor:
    """
    Shrinks what is large and keeps what is near 0 (Hafner et al., "Mastering diverse domains through world models",
    2023).

    :param x: any shape
    :return: ``sign(x) log(1 + |x|)``
    """
    return x.sign() * x.abs().log1p()


def symexp(x: torch.Tensor) -> torch.Tensor:
    """
    :param x: any shape
    :return: what :func:`symlog` makes ``x`` of
    """
    return x.sign() * x.abs().expm1()


class Block(nn.Module):
    """
    An affine map, RMS normalisation (Zhang & Sennrich, 2019) and SiLU: DreamerV3's layer.

    :param inputs: length of the input
    :param outputs: length of the output
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.affine = nn.Linear(inputs, outputs)
        self.scale = nn.Parameter(torch.ones(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.affine(x)
        return nn.functional.silu(x * (x.square().mean(dim=-1, keepdim=True) + NORM_FLOOR).rsqrt() * self.scale)

    def fast(self, x: Floats) -> Floats:
        """
        The same without torch.

        :param x: ``(n, inputs)``
        :return: ``(n, outputs)``
        """
        x = fast_linear(self.affine, x)
        x *= self.scale.detach().numpy() / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(NORM_FLOOR))
        x /= 1.0 + np.exp(-x)
        return x


def fast_linear(affine: nn.Linear, x: Floats) -> Floats:
    """
    :param affine: on the CPU
    :param x: ``(n, inputs)``
    :return: the same as ``affine(x)``, without torch, ``(n, outputs)``
    """
    y: Floats = x @ affine.weight.detach().numpy().T
    y += affine.bias.detach().numpy()
    return y


def fast_gru(cell: nn.GRUCell, x: Floats, h: Floats) -> Floats:
    """
    :param cell: on the CPU
    :param x: input, ``(n, inputs)``
    :param h: memory, ``(n, size)``
    :return: the same as ``cell(x, h)``, without torch, ``(n, size)``
    """
    of_x = x @ cell.weight_ih.detach().numpy().T + cell.bias_ih.detach().numpy()
    of_h = h @ cell.weight_hh.detach().numpy().T + cell.bias_hh.detach().numpy()
    size = h.shape[1]
    gates = 1.0 / (1.0 + np.exp(-of_x[:, : 2 * size] - of_h[:, : 2 * size]))
    reset, keep = gates[:, :size], gates[:, size:]
    new = np.tanh(of_x[:, 2 * size :] + reset * of_h[:, 2 * size :])
    following: Floats = new + keep * (h - new)
    return following


class NumpyStandardizer:
    """
    The same without torch, whose calls cost more than the arithmetic of a small batch.

    :param standardizer: on the CPU
    """

    def __init__(self, standardizer: Standardizer) -> None:
        self._moments = Prepared(_moments, standardizer.mean, standardizer.var)

    def __call__(self, x: Floats) -> Floats:
        """
        :param x: ``(..., n, size)``
        :return: standardised and clipped, ``(..., n, size)``
        """
        mean, deviation = self._moments(few(x.shape[-2]))
        scaled: Floats = x - mean
        scaled /= deviation
        return scaled.clip(_LOW, _HIGH, out=scaled)


def _moments(mean: Floats, var: Floats, rows: int) -> tuple[Floats, Floats]:
    deviation = np.sqrt(var + np.float32(VARIANCE_FLOOR))
    return mean[None].repeat(rows, axis=0), deviation[None].repeat(rows, axis=0)


class NumpyEnsemble:
    """
    The forward pass of an :class:`EnsembleMLP` without torch.

    :param ensemble: on the CPU
    """

    def __init__(self, ensemble: EnsembleMLP) -> None:
        self._weights = Views(*ensemble.weights)
        self._biases = Prepared(_for_rows, *ensemble.biases)

    def __call__(self, x: Floats, members: slice = _ALL) -> Floats:
        """
        :param x: ``(n, inputs)``, or ``(e, n, inputs)``
        :param members: which of the ``e`` to evaluate. Default: all
        :return: ``(e, n, outputs)``
        """
        biases = self._biases(few(x.shape[-2]))
        for depth, weight in enumerate(self._weights()):
            if depth:
                np.maximum(x, _ZERO, out=x)
            x = np.matmul(x, weight[members])
            x += biases[depth][members]
        return x


def _for_rows(*arguments: Any) -> list[Floats]:
    """
    :param arguments: biases of each layer, ``(e, 1, outputs)``, and the number of rows
    :return: of each layer, ``(e, n, outputs)``
    """
    *biases, rows = arguments
    return [bias.repeat(rows, axis=1) for bias in biases]
