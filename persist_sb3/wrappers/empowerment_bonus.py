"""A reward for states in which the agent's actions matter."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.intrinsic.empowerment import Control, Empowerment
from persist_sb3.models.prepared import Views
from persist_sb3.models.spec import StateSpec
from persist_sb3.wrappers.adapters import VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.intrinsic import BonusLayer, BonusWrapper
from persist_sb3.wrappers.layer import Lookup, Step


class EmpowermentBonusLayer(BonusLayer):
    """
    Adds ``weight * E(s') / E_max`` to the reward: the empowerment of the true next state
    (:class:`~persist_sb3.intrinsic.Empowerment`), the last one where an episode ended, as a share of the most that the
    actions could decide: ``k log |A|`` nats of actions that can be enumerated, one nat for each degree of freedom of
    Box actions. The bonus is 0 until :class:`~persist_sb3.callbacks.EmpowermentCallback` has a world model to imagine
    with, and has learned from it. The layer changes no statistics: in evaluation they stand still.

    Place it outside every layer that changes what the agent sees. It publishes ``E(s')``, in nats, as
    ``info["persist"]["empowerment"]``.

    :param weight: ``lambda_I``, at least 0
    :raises ValueError: if it is out of its range
    :raises TypeError: if the observation is an image
    """

    pays = Control()

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.model: Empowerment | None = None
        self._training = False

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self._spec = StateSpec(observation_space, action_space, lookup("viability"))
        self._nothing = np.zeros(num_envs)

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        model = bundle.get("empowerment")
        if model is not None:
            self.check_observation(self._spec, model.spec)
            self._unit = Views(model.unit)
        self.model = model
        self._training = training

    def bonus(self, step: Step) -> NDArray[np.float64]:
        if self.model is None:
            if self._training:
                raise RuntimeError(
                    "EmpowermentBonus has no model: add persist_sb3.callbacks.WorldModelCallback() and "
                    "persist_sb3.callbacks.EmpowermentCallback() to the callbacks"
                )
            return self._nothing
        internal = step.infos.column(("internal",), self.everyone)
        empowerment = self.model.value(self.next_state(step, internal))
        self.tell("empowerment", empowerment)
        return empowerment * float(self._unit()[0])


class EmpowermentBonus(BonusWrapper):
    """:class:`EmpowermentBonusLayer` around a ``gymnasium.Env``."""

    layer_type = EmpowermentBonusLayer


class VecEmpowermentBonus(VecLayerWrapper):
    """:class:`EmpowermentBonusLayer` around SB3's ``VecEnv``."""

    layer_type = EmpowermentBonusLayer


class VectorEmpowermentBonus(VectorLayerWrapper):
    """:class:`EmpowermentBonusLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = EmpowermentBonusLayer
