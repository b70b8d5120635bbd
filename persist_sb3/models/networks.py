"""Ensembles of multilayer perceptrons, evaluated all members at once, in torch and in NumPy."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float32]

#: Standardised inputs are clipped to this, as RND does (Burda et al., 2019).
CLIP = 5.0

#: Keeps an input that has not varied yet from being blown up when it does.
VARIANCE_FLOOR = 1e-4

#: Added to the mean square by which a layer is normalised.
NORM_FLOOR = 1e-4

_FLOOR, _LOW, _HIGH = np.float32(VARIANCE_FLOOR), np.float32(-CLIP), np.float32(CLIP)


class Standardizer(nn.Module):
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

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Standardizer":
        # In place, as parameters move to another device: whoever has a view of the moments keeps it.
        for moment in (self.mean, self.var, self.count):
            moment.data = fn(moment)
        return self

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
        self._moments = standardizer.mean, standardizer.var

    def __call__(self, x: Floats) -> Floats:
        """
        :param x: ``(..., size)``
        :return: standardised and clipped, ``(..., size)``
        """
        mean, var = self._moments
        scaled: Floats = x - mean.numpy()
        scaled /= np.sqrt(var.numpy() + _FLOOR)
        # Faster than np.clip on a small batch.
        np.minimum(scaled, _HIGH, out=scaled)
        np.maximum(scaled, _LOW, out=scaled)
        return scaled


class NumpyEnsemble:
    """
    The forward pass of an :class:`EnsembleMLP` without torch, on views of its parameters. These are taken anew when the
    parameters lie elsewhere than before, as they do when they move into memory that processes share.

    :param ensemble: on the CPU
    """

    def __init__(self, ensemble: EnsembleMLP) -> None:
        self._parameters = [*ensemble.weights, *ensemble.biases]
        self._places: list[int] = []
        self._layers: list[tuple[Floats, Floats]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_parameters": self._parameters, "_places": [], "_layers": []}

    def _views(self) -> list[tuple[Floats, Floats]]:
        """
        :return: weight and bias of each layer
        """
        places = [parameter.data_ptr() for parameter in self._parameters]
        if places != self._places:
            arrays = [parameter.detach().numpy() for parameter in self._parameters]
            depth = len(arrays) // 2
            self._places, self._layers = places, list(zip(arrays[:depth], arrays[depth:], strict=True))
        return self._layers

    def __call__(self, x: Floats) -> Floats:
        """
        :param x: ``(n, inputs)``, or ``(e, n, inputs)``
        :return: ``(e, n, outputs)``
        """
        layers = self._views()
        last = len(layers) - 1
        for depth, (weight, bias) in enumerate(layers):
            x = np.matmul(x, weight)
            x += bias
            if depth < last:
                np.maximum(x, 0.0, out=x)
        return x
