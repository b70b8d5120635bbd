"""Judges actions by what a search has taught a network."""

import numpy as np

from persist_sb3.batch import unflatten
from persist_sb3.models.safety import SafetyNetwork
from persist_sb3.models.spec import Floats
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield.decision import Verdict
from persist_sb3.shield.sketch import Sketch


class AmortisedVerifier:
    """
    Lets an action pass if the safety network gives it a ``p_safe`` of ``conf`` or more. The network knows no more than
    that: how actions compare, and which constraint is in danger, is the critic's word.

    :param network: learned from a search
    :param critic: values actions
    :param sketch: outlines what the search would imagine
    :param conf: least ``p_safe`` of an action that passes
    """

    def __init__(self, network: SafetyNetwork, critic: ViabilityCritic, sketch: Sketch, conf: float) -> None:
        self._network = network
        self._critic = critic
        self._sketch = sketch
        self.conf = conf

    def __call__(self, state: Floats, action: Floats) -> Verdict:
        """
        :param state: ``(r, D)``
        :param action: encoded, ``(r, A)``
        :return: ``r`` rows. Where a model failed ``score`` is NaN
        """
        network, spec = self._network, self._network.spec
        if spec.continuous:
            values = self._critic.action_values(state, action)
        else:
            values = self._critic.values(state)[np.arange(len(state)), spec.index(unflatten(spec.action_space, action))]
        p_safe = network.p_safe(network.inputs(state, action, values, self._sketch(state, action)))
        verdict = Verdict.by_critic(values, -np.inf)
        verdict.p_safe, verdict.safe = p_safe, p_safe >= self.conf
        verdict.score = np.where(np.isnan(p_safe), np.float32(np.nan), verdict.score)
        return verdict
