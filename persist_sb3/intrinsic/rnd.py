"""Random network distillation: what cannot be predicted yet has not been seen often."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from persist_sb3.batch import Batch, flatten
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
    :param net_arch: sizes of the target's hidden layers; the predictor has one more, of the last size
    :param features: length of what is predicted
    :param ignore: columns of the flattened observation that novelty does not regard
    :raises ValueError: if a size is below 1, or no column remains
    """

    #: What errors are divided by; infinite, and the bonus 0, until it was measured.
    scale: torch.Tensor
    #: What a schedule multiplies the bonus with.
    factor: torch.Tensor

    def __init__(
        self, spec: StateSpec, net_arch: Sequence[int] = (64,), features: int = 64, ignore: Sequence[int] = ()
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
        self.target = EnsembleMLP(1, [len(self._columns), *sizes])
        self.predictor = EnsembleMLP(1, [len(self._columns), *net_arch, *sizes[-2:-1], features])
        for network in (self.target, self.predictor):
            _init_orthogonally(network)
        self.target.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(torch.inf))
        self.register_buffer("factor", torch.tensor(1.0))
        self._fast_target, self._fast_predictor = NumpyEnsemble(self.target), NumpyEnsemble(self.predictor)
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
        whitened = self.standardizer(encoded)
        return (self.predictor(whitened) - self.target(whitened))[0].square().mean(dim=1)

    def error(self, encoded: Floats) -> NDArray[np.float64]:
        """
        The same for few observations, without torch.

        :param encoded: ``(n, D)``
        :return: ``(n,)``
        """
        whitened = self._fast_standardizer(encoded)
        gap = (self._fast_predictor(whitened) - self._fast_target(whitened))[0]
        return np.einsum("nf,nf->n", gap, gap, dtype=np.float64) / gap.shape[1]

    @property
    def unit(self) -> float:
        """What an error is multiplied with to become a bonus of weight 1."""
        return float(self.factor) / float(self.scale)


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
