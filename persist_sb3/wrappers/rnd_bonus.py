"""A reward for observations that are new to the agent."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.intrinsic.rnd import RND, Novelty
from persist_sb3.models.prepared import Views
from persist_sb3.models.spec import StateSpec
from persist_sb3.wrappers.adapters import VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.intrinsic import BonusLayer, BonusWrapper
from persist_sb3.wrappers.layer import Lookup, Step


class RNDBonusLayer(BonusLayer):
    """
    Adds ``weight * e(o') / std`` to the reward: ``e`` is the error of random network distillation
    (:class:`~persist_sb3.intrinsic.RND`) on the true next observation, the last one where an episode ended, and ``std``
    its unit (:class:`~persist_sb3.intrinsic.ForwardScale`). The bonus is 0 until
    :class:`~persist_sb3.callbacks.RNDCallback` has measured that unit. The layer changes no statistics: in evaluation
    they stand still.

    Place it outside every layer that changes what the agent sees. It publishes the error itself as
    ``info["persist"]["novelty"]``.

    :param weight: ``lambda_I``, at least 0
    :raises ValueError: if it is out of its range
    :raises TypeError: if the observation is an image
    """

    pays = Novelty()

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.rnd: RND | None = None
        self._training = False

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self._spec = StateSpec(observation_space, action_space, lookup("viability"))
        self._nothing = np.zeros(num_envs)

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        rnd = bundle.get("rnd")
        if rnd is not None:
            self.check_observation(self._spec, rnd.spec)
            self._unit = Views(rnd.unit)
        self.rnd = rnd
        self._training = training

    def bonus(self, step: Step) -> NDArray[np.float64]:
        if self.rnd is None:
            if self._training:
                raise RuntimeError("RNDBonus has no model: add persist_sb3.callbacks.RNDCallback() to the callbacks")
            return self._nothing
        novelty = self.rnd.error(self.rnd.encode(step.next_observation))
        self.tell("novelty", novelty)
        return novelty * float(self._unit()[0])


class RNDBonus(BonusWrapper):
    """:class:`RNDBonusLayer` around a ``gymnasium.Env``."""

    layer_type = RNDBonusLayer


class VecRNDBonus(VecLayerWrapper):
    """:class:`RNDBonusLayer` around SB3's ``VecEnv``."""

    layer_type = RNDBonusLayer


class VectorRNDBonus(VectorLayerWrapper):
    """:class:`RNDBonusLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = RNDBonusLayer
