"""A critic that is believed less where the models do not know what happens."""

import numpy as np
from numpy.typing import NDArray

from persist_sb3.models.familiarity import Familiarity
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.models.viability import ViabilityCritic

#: The most that is taken off a value, in scaled margins: from the setpoint to the limit.
MOST = 1.0


class CautiousCritic:
    """
    The viability critic, with ``caution * max(0, disagreement / typical - 1)`` taken off the value of each action, at
    most :data:`MOST`: for a shield that is as if its threshold were so much higher there. The disagreement is that of
    the internal model's ensemble, so what nobody has tried is not trusted because it looks good (a penalty on model
    uncertainty, as in Yu et al., "MOPO: model-based offline policy optimization", NeurIPS 2020).

    :param critic: values states and actions
    :param model: whose members disagree
    :param familiarity: how much they typically do
    :param caution: scaled margins for a disagreement of twice what is typical
    """

    def __init__(self, critic: ViabilityCritic, model: InternalModel, familiarity: Familiarity, caution: float) -> None:
        self.spec: StateSpec = critic.spec
        self._critic = critic
        self._model = model
        self._familiarity = familiarity
        self._caution = caution
        self._encoded = None if self.spec.continuous else self.spec.encode_action(self.spec.actions)

    def penalty(self, state: Floats, action: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :param action: encoded, ``(n, A)``
        :return: what is taken off their value, ``(n,)``
        """
        excess = self._familiarity.excess(self._model.disagreement(state, action))
        return np.minimum(self._caution * excess, MOST).astype(np.float32)

    def _penalties(self, state: Floats, actions: Floats) -> Floats:
        """
        :param state: ``(n, D)``
        :param actions: several in each state, ``(n, k, A)``
        :return: what is taken off their values, ``(n, k, 1)``
        """
        n, k = actions.shape[:2]
        return self.penalty(np.repeat(state, k, axis=0), actions.reshape(n * k, -1)).reshape(n, k, 1)

    def values(self, state: Floats) -> Floats:
        """See :meth:`~persist_sb3.models.viability.ViabilityCritic.values`."""
        assert self._encoded is not None
        everything = np.broadcast_to(self._encoded, (len(state), *self._encoded.shape))
        return self._critic.values(state) - self._penalties(state, everything)

    def action_values(self, state: Floats, action: Floats) -> Floats:
        """See :meth:`~persist_sb3.models.viability.ViabilityCritic.action_values`."""
        values = self._critic.action_values(state, action)
        return values - (self.penalty(state, action)[:, None] if action.ndim == 2 else self._penalties(state, action))

    def action_slopes(self, state: Floats, action: Floats) -> tuple[Floats, Floats]:
        """The gradient is that of the critic alone: the penalty's is too rough to follow."""
        values, slopes = self._critic.action_slopes(state, action)
        return values - self.penalty(state, action), slopes

    def best_action(self, state: Floats) -> NDArray[np.intp] | Floats:
        """The safest action; of Box actions, as the critic alone knows it."""
        if self.spec.continuous:
            return self._critic.best_action(state)
        return self.values(state)[:, :, 0].argmax(axis=1)

    def viability(self, state: Floats) -> Floats:
        """See :meth:`~persist_sb3.models.viability.ViabilityCritic.viability`."""
        if self.spec.continuous:
            return self.action_values(state, self._critic.best_action(state))[:, 0]
        best: Floats = self.values(state)[:, :, 0].max(axis=1)
        return best
