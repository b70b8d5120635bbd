"""Predictions of several steps, and what they are held against."""

import numpy as np
from numpy.typing import NDArray

from persist_sb3.draws import Draws, Noise, hash_rows
from persist_sb3.models.imagination import Dynamics, LatentDynamics, rollout
from persist_sb3.models.latent import Belief
from persist_sb3.models.prediction import PredictiveModel
from persist_sb3.models.spec import Floats


def forecast(
    dynamics: Dynamics, state: Floats, actions: Floats, rollouts: int = 16, belief: Belief | None = None
) -> Floats:
    """
    The mean of imagined futures, drawn by a hash of the state: a function of what it is made from.

    :param dynamics: how the state goes on
    :param state: where each row begins, ``(n, D)``
    :param actions: encoded, of every step, ``(h, n, A)``
    :param rollouts: futures of each row
    :param belief: about the rows' episodes, for :class:`~persist_sb3.models.imagination.LatentDynamics`. Default: none
    :return: the state after each step, ``(h, n, D)``
    """
    rows = np.repeat(np.arange(len(state)), rollouts)
    members = np.tile(np.arange(rollouts) % dynamics.members, len(state))
    if belief is not None:
        assert isinstance(dynamics, LatentDynamics)
        dynamics = dynamics.begin(state[rows], belief.rows(rows))
    noise = Draws.split(hash_rows(state), rollouts)
    futures = rollout(dynamics, state[rows], actions[:, rows], len(actions), members, noise)
    mean: Floats = futures.reshape(len(actions), len(state), rollouts, -1).mean(axis=2)
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
