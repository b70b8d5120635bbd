"""Predictions of several steps, and what they are held against."""

import numpy as np
from numpy.typing import NDArray

from persist_sb3.draws import Noise
from persist_sb3.models.imagination import Dynamics, LatentDynamics, rollout
from persist_sb3.models.latent import Belief
from persist_sb3.models.prediction import PredictiveModel
from persist_sb3.models.spec import Floats


def forecast(dynamics: Dynamics, state: Floats, actions: Floats, belief: Belief | None = None) -> Floats:
    """
    What is expected if nothing is left to chance, averaged over the networks of an ensemble.

    :param dynamics: how the state goes on
    :param state: where each row begins, ``(n, D)``
    :param actions: encoded, of every step, ``(h, n, A)``
    :param belief: about the rows' episodes, for :class:`~persist_sb3.models.imagination.LatentDynamics`. Default: none
    :return: the state after each step, ``(h, n, D)``
    """
    if belief is not None:
        assert isinstance(dynamics, LatentDynamics)
        dynamics = dynamics.begin(state, belief)
    rows = np.full(len(state), 1)
    futures = [
        rollout(dynamics, state, actions, len(actions), member * rows, None) for member in range(dynamics.members)
    ]
    mean: Floats = np.mean(futures, axis=0)
    return mean


class LinearDynamics:
    """
    The linear regressions inside of models, by themselves. What is not a number stays as it is.

    :param models: which together predict the whole state
    """

    members = 1

    def __init__(self, *models: PredictiveModel) -> None:
        self._models = models

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        """See :meth:`~persist_sb3.models.imagination.Dynamics.step`; there is no chance."""
        following = state.copy()
        for model in self._models:
            heads = model.heads
            columns = np.arange(state.shape[1])[model.part][heads.numeric]
            following[:, columns] = np.clip(model.regress(state, action), heads.low, heads.high)
        return following
