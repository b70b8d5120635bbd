"""A reward for an episode without surprises."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, flatten
from persist_sb3.infos import Infos
from persist_sb3.intrinsic.smirl import EpisodeDensity
from persist_sb3.models.spec import StateSpec
from persist_sb3.wrappers.adapters import VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.extended import ExtendedObservation
from persist_sb3.wrappers.intrinsic import BonusLayer, BonusWrapper
from persist_sb3.wrappers.layer import Lookup, Step

KEY = "surprise"


class SMiRLBonusLayer(BonusLayer):
    """
    Adds ``weight * log p(o')`` to the reward: the density of the next observation among those of the running episode
    (:class:`~persist_sb3.intrinsic.EpisodeDensity`; SMiRL, Berseth et al., ICLR 2021). It is scored before it becomes
    part of that past, and forgotten when the episode ends. No model is learned.

    The reward depends on the whole episode, so what it depends on is shown to the agent: a Dict observation gets a key
    ``surprise``, a Box grows by ``2 D + 1`` entries, and any other space is flattened (in the order of
    ``gymnasium.spaces.flatten``) first.

    A log-density can be negative, and an agent that can only lose by living learns to die: keep an ``alive_bonus``
    beside it where episodes can end.

    :param weight: ``lambda_I``, at least 0
    :param prior_std: standard deviation of an observation entry before anything is known of the episode
    :param prior_count: how many observations that knowledge is worth
    :raises ValueError: if a parameter is out of its range
    :raises TypeError: if the observation is an image
    """

    def __init__(self, weight: float = 1.0, prior_std: float = 1.0, prior_count: float = 1.0) -> None:
        super().__init__(weight)
        self._prior = prior_std, prior_count
        EpisodeDensity(1, 1, *self._prior)

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self._inner_space = observation_space
        size = StateSpec(observation_space, action_space, lookup("viability")).observation_dim
        self._density = EpisodeDensity(num_envs, size, *self._prior)
        unbounded = np.full(2 * size + 1, np.inf)
        self._extended = ExtendedObservation("SMiRLBonus", observation_space, KEY, -unbounded, unbounded)
        self.observation_space = self._extended.space

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        super().begin(slots, observation, infos)
        self._density.begin(slots, flatten(self._inner_space, observation)[slots])

    def bonus(self, step: Step) -> NDArray[np.float64]:
        observation = flatten(self._inner_space, step.next_observation).astype(np.float64)
        bonus = self._density.log_density(observation)
        self._density.update(observation)
        return bonus

    def view(self, slots: NDArray[np.intp], observation: Batch) -> Batch:
        return self._extended.show(observation, self._density.statistics(slots))


class SMiRLBonus(BonusWrapper):
    """:class:`SMiRLBonusLayer` around a ``gymnasium.Env``."""

    layer_type = SMiRLBonusLayer


class VecSMiRLBonus(VecLayerWrapper):
    """:class:`SMiRLBonusLayer` around SB3's ``VecEnv``."""

    layer_type = SMiRLBonusLayer


class VectorSMiRLBonus(VectorLayerWrapper):
    """:class:`SMiRLBonusLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = SMiRLBonusLayer
