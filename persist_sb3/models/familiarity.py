"""How much an ensemble typically disagrees: the measure of what it does not know."""

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.models.base import Model
from persist_sb3.models.spec import StateSpec

Floats = NDArray[np.float32]

#: Share of the transitions that are typical, and of the last estimate that a new batch replaces.
SHARE, RATE = 0.9, 0.05

#: Least disagreement that others are compared with.
SMALLEST = 1e-6


class Familiarity(Model):
    """
    A running estimate of what nine in ten transitions stay below in the disagreement of the internal model's members
    (:meth:`~persist_sb3.models.dynamics.DynamicsModel.disagreement`), before the model is trained on them. What lies
    far above is out of distribution: there the members, which were trained on other samples of the same data, go their
    own ways (Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles",
    NeurIPS 2017).

    :param spec: the environment's state and actions
    """

    typical: torch.Tensor
    updates: torch.Tensor

    def __init__(self, spec: StateSpec) -> None:
        super().__init__(spec)
        #: In the unit of the disagreement.
        self.register_buffer("typical", torch.zeros((), dtype=torch.float64))
        #: Transitions measured.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def measure(self, disagreement: Floats) -> None:
        """
        :param disagreement: on new transitions, ``(n,)``
        """
        level = float(np.quantile(disagreement, SHARE))
        self.typical += (1.0 if self.updates == 0 else RATE) * (level - self.typical)
        self.updates += len(disagreement)

    def excess(self, disagreement: Floats) -> Floats:
        """
        :param disagreement: of states and actions, ``(n,)``
        :return: by how many times what is typical it is above that, at least 0, ``(n,)``
        """
        typical = np.float32(max(float(self.typical), SMALLEST))
        excess: Floats = np.maximum(np.divide(disagreement, typical) - np.float32(1.0), np.float32(0.0))
        return excess
