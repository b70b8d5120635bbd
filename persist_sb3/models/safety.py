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

    A ``valued`` network is told what the critic says of the actions. That is most of what a search can find out that
    goes on with this critic and ends with its word, and it stays so while the critic learns, so few answers are enough,
    and old ones stay true for longer. Of enumerable actions the values of all are all that it sees; of a Box action it
    sees the value beside state and action.

    :param spec: the environment's state and actions
    :param net_arch: sizes of the hidden layers
    :param valued: see what the critic says
    :raises ValueError: if the actions are neither a Box nor few enough to be enumerated
    """

    updates: torch.Tensor
    agreement: torch.Tensor

    def __init__(self, spec: StateSpec, net_arch: Sequence[int] = (128, 128), valued: bool = False) -> None:
        super().__init__(spec, net_arch=list(net_arch), valued=valued)
        self.valued = valued
        heads = 1 + len(spec.viability.constraints)
        outputs = 1 if spec.continuous else len(spec.actions)
        inputs = heads * outputs if valued else 0
        if spec.continuous or not valued:
            inputs += spec.state_dim
        if spec.continuous:
            inputs += spec.action_dim
        self.standardizer = Standardizer(inputs)
        self.network = EnsembleMLP(1, [inputs, *net_arch, outputs])
        #: Gradient steps taken.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        #: Share of recent answers that it would have given too, of those that it had not been told yet.
        self.register_buffer("agreement", torch.zeros(()))
        self._fast = NumpyEnsemble(self.network)
        self._fast_standardizer = self.standardizer.numpy()

    def inputs(self, state: Floats, action: Floats, values: Floats | None) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded Box actions, ``(n, A)``; of no use if actions are enumerated
        :param values: the critic's of every enumerable action, ``(n, k, 1 + m)``, or of this Box action,
            ``(n, 1 + m)``; of no use unless the network is ``valued``
        :return: what the network sees, ``(n, I)``
        """
        parts = [state, action] if self.spec.continuous else [] if self.valued else [state]
        if self.valued:
            assert values is not None
            parts.append(values.reshape(len(state), -1))
        return np.concatenate(parts, axis=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """
        :param inputs: see :meth:`inputs`, ``(n, I)``
        :return: logits of ``p_safe``, of every action if they are enumerated, ``(n, k)``, else with ``k = 1``
        """
        logits: torch.Tensor = self.network(self.standardizer(inputs))[0]
        return logits

    def p_safe(self, inputs: Floats) -> Floats:
        """
        :meth:`forward` without torch.

        :param inputs: see :meth:`inputs`, ``(n, I)``
        :return: probabilities, ``(n, k)``
        """
        logits: Floats = self._fast(self._fast_standardizer(inputs))[0]
        probabilities: Floats = np.exp(-np.logaddexp(np.float32(0.0), -logits))
        return probabilities
