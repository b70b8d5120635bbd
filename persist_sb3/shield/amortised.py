"""Judges actions by what a search has taught a network."""

import numpy as np

from persist_sb3.batch import unflatten
from persist_sb3.models.safety import SafetyNetwork
from persist_sb3.models.spec import Floats
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield.decision import Verdict


class AmortisedVerifier:
    """
    Lets an action pass if the safety network gives it a ``p_safe`` of ``conf`` or more. The network knows no more than
    that: how actions compare, and which constraint is in danger, is the critic's word.

    :param network: learned from a search
    :param critic: values actions
    :param conf: least ``p_safe`` of an action that passes
    """

    def __init__(self, network: SafetyNetwork, critic: ViabilityCritic, conf: float) -> None:
        self._network = network
        self._critic = critic
        self.conf = conf

    def __call__(self, state: Floats, action: Floats) -> Verdict:
        """
        :param state: ``(r, D)``
        :param action: encoded, ``(r, A)``
        :return: ``r`` rows
        """
        network, spec = self._network, self._network.spec
        if spec.continuous:
            values = self._critic.action_values(state, action)
            p_safe = network.p_safe(network.inputs(state, action, values))[:, 0]
        else:
            everything = self._critic.values(state)
            chosen = np.arange(len(state)), spec.index(unflatten(spec.action_space, action))
            p_safe = network.p_safe(network.inputs(state, action, everything))[chosen]
            values = everything[chosen]
        verdict = Verdict.by_critic(values, -np.inf)
        verdict.p_safe, verdict.safe = p_safe, p_safe >= self.conf
        return verdict
