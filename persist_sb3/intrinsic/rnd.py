"""Random network distillation: what cannot be predicted yet has not been seen often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from persist_sb3.batch import Batch, flatten
from persist_sb3.intrinsic.bonus import Moves
from persist_sb3.models.base import Model
from persist_sb3.models.networks import CLIP, VARIANCE_FLOOR, EnsembleMLP, Standardizer
from persist_sb3.models.spec import StateSpec

Floats = NDArray[np.float32]

_FLOOR = np.float32(VARIANCE_FLOOR)


class RND(Model):
    """
    A fixed random network of the observation, and a predictor that learns to imitate it where the agent goes; the
    predictor's error is the novelty of an observation (Burda et al., "Exploration by random network distillation",
    ICLR 2019, arXiv:1810.12894). Inputs are whitened and clipped to +-5, since a fixed network cannot adapt to their
    scale.

    It looks at the observation as the policy sees it. Internal variables that the observation does not show stay out:
    rare internal states are those near death, and an agent is not to be paid for seeking them. ``ignore`` leaves out
    those that it does show.

    :param spec: the environment's state
    :param net_arch: sizes of the hidden layers, of both networks
    :param features: length of what is predicted
    :param ignore: columns of the flattened observation that novelty does not regard
    :raises ValueError: if a size is below 1, or no column remains
    """

    #: What turns an error into a bonus of weight 1; 0 until it was measured.
    unit: torch.Tensor

    def __init__(
        self, spec: StateSpec, net_arch: Sequence[int] = (64, 64), features: int = 64, ignore: Sequence[int] = ()
    ) -> None:
        super().__init__(spec, net_arch=list(net_arch), features=features, ignore=list(ignore))
        sizes = [*net_arch, features]
        if min(sizes) < 1:
            raise ValueError(f"net_arch={list(net_arch)} and features={features} must be at least 1")
        self._columns = np.setdiff1d(np.arange(spec.observation_dim), np.array(ignore, dtype=np.intp))
        if not len(self._columns):
            raise ValueError(f"ignore={list(ignore)} leaves nothing of the {spec.observation_dim} observation entries")
        self._all = len(self._columns) == spec.observation_dim
        self.standardizer = Standardizer(len(self._columns))
        #: The target and the predictor, in one ensemble, which halves the calls.
        self.networks = EnsembleMLP(2, [len(self._columns), *sizes])
        _init_orthogonally(self.networks)
        self.register_buffer("unit", torch.zeros(()))
        self._fast = _Fast(self)

    def encode(self, observation: Batch) -> Floats:
        """
        :param observation: ``(n, ...)``
        :return: what the networks see of it, before it is whitened, ``(n, D)``
        """
        flat: NDArray[Any] = flatten(self.spec.observation_space, observation)
        return (flat if self._all else flat[:, self._columns]).astype(np.float32, copy=False)

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        """
        :param encoded: ``(n, D)``
        :return: the predictor's error, mean square over features, ``(n,)``
        """
        target, prediction = self.networks(self.standardizer(encoded))
        return (prediction - target.detach()).square().mean(dim=1)

    @torch.no_grad()
    def backpropagate(self, encoded: torch.Tensor) -> float:
        """
        Set the parameters' gradients to those of the mean of :meth:`forward`, as ``backward()`` would, in a third of
        its time: nothing is recorded, and nothing propagated through the target. The target's gradients, and its steps
        of Adam, are exactly 0.

        :param encoded: ``(n, D)``
        :return: the mean
        """
        layers = list(zip(self.networks.weights, self.networks.biases, strict=True))
        x = self.standardizer(encoded).expand(2, *encoded.shape)
        inputs: list[torch.Tensor] = []
        for weight, bias in layers:
            # The last layer has no ReLU, so it comes before every other.
            x = x.relu() if inputs else x
            inputs.append(x[1])
            x = torch.baddbmm(bias, x, weight)
        gap = x[1] - x[0]
        delta = gap * (2.0 / gap.numel())
        for (weight, bias), layer_input in zip(reversed(layers), reversed(inputs), strict=True):
            for parameter in (weight, bias):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            assert weight.grad is not None and bias.grad is not None
            torch.mm(layer_input.T, delta, out=weight.grad[1])
            torch.sum(delta, dim=0, keepdim=True, out=bias.grad[1])
            if weight is not layers[0][0]:
                # What autograd calls for a ReLU, in a fifth of the time of multiplying with a mask.
                delta = torch.ops.aten.threshold_backward(delta @ weight[1].T, layer_input, 0.0)
        return float(gap.square().mean())

    def error(self, encoded: Floats) -> NDArray[np.float64]:
        """
        The same for few observations, without torch.

        :param encoded: ``(n, D)``
        :return: ``(n,)``
        """
        return self._fast(encoded)


class _Fast:
    """
    :meth:`RND.error` without torch, on views of the parameters, for batches of one size. At the size of a step NumPy
    takes longer to align arrays of different shapes than to compute with them, so moments and biases are laid out for
    the whole batch, anew when they have changed.

    :param rnd: on the CPU
    """

    def __init__(self, rnd: RND) -> None:
        networks, moments = rnd.networks, rnd.standardizer
        self._tensors = [moments.mean, moments.var, *networks.biases, *networks.weights]
        self._place = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_tensors": self._tensors, "_place": 0}

    def _views(self) -> None:
        """Look where the parameters are: they move together, into memory that processes share."""
        place = self._tensors[0].data_ptr()
        if place != self._place:
            arrays = [tensor.detach().numpy() for tensor in self._tensors]
            self._small, self._weights = arrays[: len(arrays) // 2 + 1], arrays[len(arrays) // 2 + 1 :]
            self._place, self._known = place, (0,)

    def __call__(self, x: Floats) -> NDArray[np.float64]:
        """
        :param x: ``(n, D)``
        :return: ``(n,)``
        """
        self._views()
        # Compared by value: where processes share them, another one changes them.
        known = (len(x), *[array.tobytes() for array in self._small])
        if known != self._known:
            self._lay_out(x.shape)
            self._known = known
        x = x - self._mean
        x /= self._scale
        np.minimum(x, self._high, out=x)
        np.maximum(x, self._low, out=x)
        for depth, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            if depth:
                np.maximum(x, self._nothing[depth - 1], out=x)
            x = np.matmul(x, weight)
            x += bias
        gap = x[1] - x[0]
        error: NDArray[np.float64] = np.vecdot(gap, gap).astype(np.float64)
        error /= gap.shape[1]
        return error

    def _lay_out(self, shape: tuple[int, ...]) -> None:
        """
        :param shape: of the batch
        """
        mean, var, *biases = self._small
        self._mean, self._scale = (np.tile(row, (shape[0], 1)) for row in (mean, np.sqrt(var + _FLOOR)))
        self._biases = [np.tile(bias, (1, shape[0], 1)) for bias in biases]
        self._nothing = [np.zeros_like(bias) for bias in self._biases]
        self._high = np.full(shape, CLIP, dtype=np.float32)
        self._low = -self._high


@dataclass(frozen=True)
class Novelty:
    """The error of :class:`RND` on the next observation."""

    parts: ClassVar[tuple[str, ...]] = ("rnd",)

    def score(self, parts: Mapping[str, Any], moves: Moves) -> NDArray[np.float64]:
        """
        :param parts: ``rnd``
        :param moves: ``n`` transitions
        :return: the error, ``(n,)``
        """
        rnd: RND = parts["rnd"]
        return rnd.error(rnd.encode(moves.next_observation))

    def unit(self, parts: Mapping[str, Any]) -> float:
        """
        :param parts: ``rnd``
        :return: what an error is multiplied with
        """
        return float(parts["rnd"].unit)


def _init_orthogonally(network: EnsembleMLP) -> None:
    """
    Keep the size of the signal through the layers, as in the reference: with the usual small weights a random target
    is nearly constant.

    :param network: changed in place
    """
    for weight, bias in zip(network.weights, network.biases, strict=True):
        for member in weight:
            nn.init.orthogonal_(member, gain=2.0**0.5)
        nn.init.zeros_(bias)
