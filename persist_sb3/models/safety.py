"""The safety network: what a search would say about an action, in one forward pass."""

from collections.abc import Sequence

import numpy as np
import torch

from persist_sb3.models.base import Model
from persist_sb3.models.networks import EnsembleMLP, NumpyEnsemble, Standardizer
from persist_sb3.models.spec import Floats, StateSpec


class SafetyNetwork(Model):
    """
    ``p_safe(s, a)``: the share of imagined futures that stay within the limits, distilled from the answers of the
    search that imagines them (policy distillation, Rusu et al., ICLR 2016). Actions that can be enumerated have outputs
    of their own; Box actions are inputs.

    :param spec: the environment's state and actions
    :param net_arch: sizes of the hidden layers
    :raises ValueError: if the actions are neither a Box nor few enough to be enumerated
    """

    updates: torch.Tensor
    agreement: torch.Tensor

    def __init__(self, spec: StateSpec, net_arch: Sequence[int] = (128, 128)) -> None:
        super().__init__(spec, net_arch=list(net_arch))
        inputs, outputs = (spec.action_dim, 1) if spec.continuous else (0, len(spec.actions))
        self.standardizer = Standardizer(spec.state_dim)
        self.network = EnsembleMLP(1, [spec.state_dim + inputs, *net_arch, outputs])
        #: Gradient steps taken.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        #: Share of recent answers that it would have given too, of those that it had not been told yet.
        self.register_buffer("agreement", torch.zeros(()))
        self._fast = NumpyEnsemble(self.network)
        self._fast_standardizer = self.standardizer.numpy()

    def forward(self, state: torch.Tensor, action: torch.Tensor | None = None) -> torch.Tensor:
        """
        :param state: ``(n, D)``
        :param action: encoded Box actions, ``(n, A)``; None if actions are enumerated
        :return: logits of ``p_safe``, of every action if they are enumerated, ``(n, k)``, else with ``k = 1``
        """
        inputs = self.standardizer(state)
        if action is not None:
            inputs = torch.cat([inputs, action], dim=1)
        logits: torch.Tensor = self.network(inputs)[0]
        return logits

    def p_safe(self, state: Floats, action: Floats | None = None) -> Floats:
        """
        :meth:`forward` without torch.

        :param state: ``(n, D)``
        :param action: encoded Box actions, ``(n, A)``; None if actions are enumerated
        :return: probabilities, ``(n, k)``
        """
        inputs = self._fast_standardizer(state)
        if action is not None:
            inputs = np.concatenate([inputs, action], axis=1)
        logits: Floats = self._fast(inputs)[0]
        probabilities: Floats = np.exp(-np.logaddexp(np.float32(0.0), -logits))
        return probabilities
