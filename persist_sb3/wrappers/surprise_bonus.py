"""A reward for what was foreseen, or for what was not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, with_rows
from persist_sb3.infos import Infos
from persist_sb3.intrinsic.surprise import UNIT, WORLD_MODEL, Surprise
from persist_sb3.models.prepared import Views
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.wrappers.adapters import VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.intrinsic import BonusLayer, BonusWrapper
from persist_sb3.wrappers.layer import Lookup, Step, declared


class SurpriseBonusLayer(BonusLayer):
    """
    Adds ``weight * (-NLL(o'|s,a) - beta * ||x' - mu||^2) / std`` to the reward
    (:class:`~persist_sb3.intrinsic.Surprise`). ``NLL`` is that of the true next observation under the world model,
    before the model was trained on it, in nats and averaged over the entries of the observation; ``std`` is the unit
    (:class:`~persist_sb3.intrinsic.BonusUnit`), which does not move the sign. The bonus is 0 until
    :class:`~persist_sb3.callbacks.WorldModelCallback` has trained the model and measured the unit. The layer changes no
    statistics: in evaluation they stand still.

    As it stands the agent is paid for what it can foresee. By itself that leads to a dark room, where nothing happens
    and there is nothing to eat: keep ``HomeostatReward`` with its alive bonus beside it. With ``seek`` the agent is
    paid for what it cannot foresee, which makes it explore, and a screen of noise attracts it.

    Place it outside every layer that changes what the agent sees, and inside ``ActionShield``. It publishes
    ``info["persist"]["surprise"]``, the ``NLL``, and ``info["persist"]["surprise_score"]``, the bracket above.

    :param weight: ``lambda_I``, at least 0
    :param beta: of the distance from the setpoint, at least 0, in nats
    :param seek: ``+NLL`` in place of ``-NLL``
    :raises ValueError: if a parameter is out of its range
    :raises RuntimeError: if ``beta`` is positive and there is no setpoint, or ``ActionShield`` is inside
    :raises TypeError: if the observation is an image
    """

    pays: Surprise

    def __init__(self, weight: float = 1.0, beta: float = 1.0, seek: bool = False) -> None:
        super().__init__(weight)
        self.pays = Surprise(beta, seek)

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        try:
            self._spec = StateSpec(observation_space, action_space, lookup("viability"))
        except ValueError as error:
            raise RuntimeError(f"SurpriseBonus: {error}") from error
        self._mu = self._spec.viability.mu
        if self.pays.beta and self._mu is None:
            raise RuntimeError(
                f"SurpriseBonus(beta={self.pays.beta}) needs setpoints, and the constraints below have none: give "
                "InternalState mu=[...], or SurpriseBonus beta=0"
            )
        _refuse_shield_below(lookup)
        self._parts: Mapping[str, Any] = {}
        self._complete = False
        self._training = False
        self._x = np.zeros((num_envs, self._spec.internal_dim))
        # The states that the next step begins in, encoded, where they are those that the last one led to.
        self._state: Floats | None = None
        self._nothing = np.zeros(num_envs)

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        parts = {name: bundle[name] for name in self.pays.parts if name in bundle}
        if WORLD_MODEL in parts:
            self.check_observation(self._spec, parts[WORLD_MODEL].spec)
        self._parts = parts
        self._complete = len(parts) == len(self.pays.parts)
        if self._complete:
            self._updates, self._unit = Views(parts[WORLD_MODEL].updates), Views(parts[UNIT].value)
        self._state = None
        self._training = training

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        super().begin(slots, observation, infos)
        self._x = with_rows(self._x, slots, infos.column(("internal",), slots))
        self._state = None

    def bonus(self, step: Step) -> NDArray[np.float64]:
        x, self._x = self._x, step.infos.column(("internal",), self.everyone)
        state, self._state = self._state, None
        if not self._complete:
            if self._training:
                raise RuntimeError(
                    "SurpriseBonus has no model: add persist_sb3.callbacks.WorldModelCallback() to the callbacks"
                )
            return self._nothing
        if not self._updates()[0]:
            return self._nothing
        model = self._parts[WORLD_MODEL]
        spec: StateSpec = model.spec
        if state is None:
            state = spec.encode(step.observation, x)
        self._state = self.next_state(step, self._x)
        following = self._state[:, : spec.observation_dim]
        surprise = model.surprise(state, spec.encode_action(step.action), following)
        score = self.pays.reward(surprise, self._x, self._mu)
        self.tell("surprise", surprise)
        self.tell("surprise_score", score)
        return score * float(self._unit()[0])


def _refuse_shield_below(lookup: Lookup) -> None:
    """
    :param lookup: finds attributes of what is below
    :raises RuntimeError: if a shield is: other actions than this layer sees are executed there
    """
    if declared(lookup, "lookahead", None) is not None:
        raise RuntimeError("SurpriseBonus must see the actions that are executed: place it inside ActionShield")


class SurpriseBonus(BonusWrapper):
    """:class:`SurpriseBonusLayer` around a ``gymnasium.Env``."""

    layer_type = SurpriseBonusLayer


class VecSurpriseBonus(VecLayerWrapper):
    """:class:`SurpriseBonusLayer` around SB3's ``VecEnv``."""

    layer_type = SurpriseBonusLayer


class VectorSurpriseBonus(VectorLayerWrapper):
    """:class:`SurpriseBonusLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = SurpriseBonusLayer
