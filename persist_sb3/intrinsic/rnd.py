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
from persist_sb3.models.networks import EnsembleMLP, NumpyEnsemble, Standardizer
from persist_sb3.models.spec import StateSpec

Floats = NDArray[np.float32]


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
        self._features = np.array(float(features))
        self._fast = NumpyEnsemble(self.networks)
        self._fast_standardizer = self.standardizer.numpy()

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

    def backpropagate(self, encoded: torch.Tensor) -> float:
        """
        Set the parameters' gradients to those of the mean of :meth:`forward`. The target's are 0, and so are its steps
        of Adam.

        :param encoded: ``(n, D)``
        :return: the mean
        """
        return self.networks.backpropagate(self.standardizer(encoded), lambda outputs: outputs[1] - outputs[0])

    def error(self, encoded: Floats) -> NDArray[np.float64]:
        """
        The same for few observations, without torch.

        :param encoded: ``(n, D)``
        :return: ``(n,)``
        """
        target, prediction = self._fast(self._fast_standardizer(encoded))
        prediction -= target
        error: NDArray[np.float64] = np.vecdot(prediction, prediction) / self._features
        return error


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
