"""The safety network: what a search would say about an action, in one forward pass."""

from collections.abc import Sequence

import numpy as np
import torch

from persist_sb3.models.base import Model
from persist_sb3.models.networks import EnsembleMLP, NumpyEnsemble, Standardizer
from persist_sb3.models.prediction import sigmoid
from persist_sb3.models.spec import Floats, StateSpec


class SafetyNetwork(Model):
    """
    ``p_safe(s, a)``: the share of imagined futures that stay within the limits, distilled from the answers of the
    search that imagines them (policy distillation, Rusu et al., ICLR 2016).

    It sees the outline of the search (:class:`~persist_sb3.shield.sketch.Sketch`): one future of ``foresight`` steps,
    without chance. What is left to be learned is what chance, and the steps after that, make of it. A ``valued``
    network, whose search goes on with the critic, sees what the critic says of the action and of the states to come,
    which stays true while critic and dynamics learn; any other sees state and action.

    :param spec: the environment's state and actions
    :param net_arch: sizes of the hidden layers
    :param valued: see what the critic says
    :param foresight: steps of the outline
    :raises ValueError: if ``foresight`` is below 1
    """

    updates: torch.Tensor
    agreement: torch.Tensor

    def __init__(
        self, spec: StateSpec, net_arch: Sequence[int] = (64, 64), valued: bool = False, foresight: int = 2
    ) -> None:
        super().__init__(spec, net_arch=list(net_arch), valued=valued, foresight=foresight)
        if foresight < 1:
            raise ValueError(f"foresight={foresight} must be at least 1")
        self.valued = valued
        self.foresight = foresight
        margins = len(spec.viability.constraints)
        heads = 1 + margins
        now, later = (heads, margins + heads) if valued else (spec.state_dim + spec.action_dim, margins)
        inputs = now + foresight * later
        self.standardizer = Standardizer(inputs)
        self.network = EnsembleMLP(1, [inputs, *net_arch, 1])
        #: Gradient steps taken.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        #: Share of recent answers that it would have given too, of those that it had not been told yet.
        self.register_buffer("agreement", torch.zeros(()))
        self._fast = NumpyEnsemble(self.network)
        self._fast_standardizer = self.standardizer.numpy()

    def inputs(self, state: Floats, action: Floats, values: Floats | None, outline: Floats) -> Floats:
        """
        :param state: ``(r, D)``
        :param action: encoded, ``(r, A)``
        :param values: the critic's of the actions, overall and by constraint, ``(r, 1 + m)``; of no use unless the
            network is ``valued``
        :param outline: of what follows, ``(r, F)``
        :return: what the network sees, ``(r, I)``
        """
        if not self.valued:
            return np.concatenate([state, action, outline], axis=1)
        assert values is not None
        return np.concatenate([values, outline], axis=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """
        :param inputs: see :meth:`inputs`, ``(r, I)``
        :return: logits of ``p_safe``, ``(r,)``
        """
        logits: torch.Tensor = self.network(self.standardizer(inputs))[0, :, 0]
        return logits

    def p_safe(self, inputs: Floats) -> Floats:
        """
        :meth:`forward` without torch.

        :param inputs: see :meth:`inputs`, ``(r, I)``
        :return: probabilities, ``(r,)``
        """
        return sigmoid(self._fast(self._fast_standardizer(inputs))[0, :, 0])
