"""Keeps actions from being executed that would take the internal variables outside their limits."""

import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from persist_sb3.batch import Batch, take, with_rows
from persist_sb3.infos import Infos
from persist_sb3.models.base import rebuild
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield import BoxShield, Correction, Decision, EnumeratedShield, Projection
from persist_sb3.state import last_loaded
from persist_sb3.streams import Streams
from persist_sb3.wrappers.adapters import LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.layer import Layer, Lookup, Step


class ShieldError(RuntimeError):
    """The shield cannot judge, and has no action to fall back on."""


class ActionShieldLayer(Layer):
    """
    Judges each proposed action with the models that callbacks train (:class:`~persist_sb3.callbacks.ViabilityCallback`
    at least), and executes the nearest safe one where it does not pass; see
    :class:`~persist_sb3.shield.EnumeratedShield`, and :class:`~persist_sb3.shield.BoxShield` for Box actions. It must
    be the outermost layer that changes observations, since the models learn from what the policy sees.

    At every step it publishes ``info["intervened"]``. Where the action was changed, none passed, or a model failed,
    ``info["executed_action"]`` and ``info["shield"]`` tell what was done and why: the ``proposed`` action; ``value``
    (what the critic gives the proposed action) and ``executed_value``, in scaled margins; ``p_safe`` and
    ``executed_p_safe`` (NaN where only the critic was asked); ``constraint`` (index of the one in danger), the
    ``margin`` that it was foreseen to be left with and the ``step`` at which it was foreseen broken (-1: not known);
    ``infeasible`` (no action passed: the safest was taken); ``failed`` (a model answered with something that is not a
    number: ``fallback`` was executed). In actions that can be enumerated, ``action_masks()`` tells which pass.

    Until the critic has taken ``min_updates`` gradient steps the shield waits. In a replay it takes the models that
    were loaded with the policy.

    :param threshold: least value of an action that passes, in scaled margins (1 at the setpoint, 0 at a limit)
    :param correction: what replaces an action that does not pass: ``"project"``, ``"replace"`` or ``"mask"``
    :param projection: how the nearest safe Box action is looked for: ``"cem"``, or ``"gradient"``, which is the
        better one from about four components on
    :param intervention_penalty: subtracted from the reward where an action was changed
    :param min_updates: gradient steps of the critic before it is trusted
    :param fallback: an action known to be safe. It is executed while the shield waits, and where a model fails.
        Default: proposed actions pass while it waits, and a model that fails stops the run
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        threshold: float = 0.2,
        correction: Correction = "project",
        intervention_penalty: float = 0.0,
        min_updates: int = 500,
        fallback: int | Sequence[float] | None = None,
        projection: Projection = "cem",
    ) -> None:
        if not np.isfinite(threshold):
            raise ValueError(f"threshold={threshold} must be finite; margins are 1 at the setpoint and 0 at a limit")
        if correction not in ("project", "replace", "mask"):
            raise ValueError(f"correction={correction!r} must be 'project', 'replace' or 'mask'")
        if projection not in ("cem", "gradient"):
            raise ValueError(f"projection={projection!r} must be 'cem' or 'gradient'")
        if not (np.isfinite(intervention_penalty) and intervention_penalty >= 0.0):
            raise ValueError(f"intervention_penalty={intervention_penalty} must be a finite number, at least 0")
        if min_updates < 0:
            raise ValueError(f"min_updates={min_updates} must not be negative")
        self.threshold = threshold
        self.correction: Correction = correction
        self.intervention_penalty = intervention_penalty
        self.min_updates = min_updates
        self._fallback = fallback
        self.projection: Projection = projection

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        try:
            self.spec = StateSpec(observation_space, action_space, lookup("viability"))
        except ValueError as error:
            raise RuntimeError(f"ActionShield: {error}") from error
        if self.spec.continuous and self.correction == "mask":
            raise RuntimeError(f"correction='mask' cannot mask {action_space}: use 'project' or 'replace'")
        self._streams = Streams(num_envs, salt=zlib.crc32(type(self).__name__.encode()))
        self.fallback: NDArray[Any] | None = None
        if self._fallback is not None:
            self.fallback = np.array(self._fallback, dtype=action_space.dtype)
            if not action_space.contains(self.fallback if self.fallback.shape else self.fallback[()]):
                raise RuntimeError(f"fallback={self._fallback!r} is not in the action space {action_space}")
        self._critic: ViabilityCritic | None = None
        self._shield: EnumeratedShield | BoxShield | None = None
        self._bound = self._warned = self._warned_of_failure = False
        self._observation: Batch = None
        self._x = np.zeros((num_envs, self.spec.internal_dim))
        self._state: Floats | None = None
        self._decision: Decision | None = None
        self._nobody = self._intervened = self._failed = np.zeros(num_envs, dtype=bool)
        self._time = np.zeros(num_envs, dtype=np.intp)

    def seed(self, slots: NDArray[np.intp], seeds: NDArray[np.uint64]) -> None:
        self._streams.seed(slots, seeds)

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        self._bound = True
        critic = bundle.get("viability")
        if critic is not None and critic is not self._critic:
            self._use(critic)

    def _use(self, critic: ViabilityCritic) -> None:
        self._critic = critic
        if self.spec.continuous:
            self._shield = BoxShield(self.spec, critic, self.threshold, self._streams, self.correction, self.projection)
        else:
            self._shield = EnumeratedShield(self.spec, critic, self.threshold, self.correction)

    def _find_models(self) -> None:
        """
        Take the critic out of the model that this process has loaded, since no callback has brought one.

        :raises ShieldError: if there are callbacks, and none of them trains one; or if the loaded one is of another
            environment
        """
        loaded = last_loaded()
        if self._bound:
            raise ShieldError(
                "ActionShield has no critic: put persist_sb3.callbacks.ViabilityCallback among the callbacks"
            )
        if loaded is not None and "viability" in loaded.pending:
            try:
                self._use(rebuild(loaded.pending["viability"], self.spec, ViabilityCritic))
            except ValueError as error:
                raise ShieldError(f"ActionShield cannot use the critic that was loaded: {error}") from error
        elif not self._warned:
            self._warned = True
            warnings.warn(
                "ActionShield has no models, and lets every action pass: train with "
                "persist_sb3.callbacks.ViabilityCallback, or load a model that was trained with it",
                stacklevel=2,
            )

    @property
    def ready(self) -> bool:
        """Whether actions are judged: there is a critic, and it is trained enough."""
        if self._critic is None:
            self._find_models()
        return self._critic is not None and int(self._critic.updates) >= self.min_updates

    def action_masks(self) -> NDArray[np.bool_]:
        """
        :return: which actions pass; where none does, the safest alone, and where the fallback is to be executed, that
            alone, ``(n, k)``
        :raises ShieldError: if a model fails, and there is no ``fallback``
        """
        if not self.ready:
            masks = np.full((self.num_envs, len(self.spec.actions)), self.fallback is None)
            if self.fallback is not None:
                masks[:, self.spec.index(self.fallback[None])] = True
            return masks
        assert isinstance(self._shield, EnumeratedShield)
        masks = self._shield.permitted(self._encoded())
        failed = ~masks.any(axis=1)
        if failed.any():
            masks[failed, self.spec.index(self._fall_back(failed)[:1])] = True
        return masks

    def _fall_back(self, failed: NDArray[np.bool_]) -> NDArray[Any]:
        """
        :param failed: where a model failed, ``(n,)``
        :return: the fallback there, ``(k, ...)``
        :raises ShieldError: if there is none
        """
        where = ", ".join(f"environment {slot} at step {self._time[slot]}" for slot in np.flatnonzero(failed))
        problem = f"ActionShield: a model answered with something that is not a finite number, in {where}"
        if self.fallback is None:
            raise ShieldError(f"{problem}. ActionShield(fallback=...) names an action to be executed instead")
        if not self._warned_of_failure:
            self._warned_of_failure = True
            warnings.warn(f"{problem}: the fallback is executed there, and wherever it happens again", stacklevel=2)
        return np.broadcast_to(self.fallback, (np.count_nonzero(failed), *self.fallback.shape))

    def _encoded(self) -> Floats:
        if self._state is None:
            self._state = self.spec.encode(self._observation, self._x)
        return self._state

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        if len(slots) < self.num_envs:
            observation = with_rows(self._observation, slots, take(observation, slots))
        self._observation = observation
        self._x = with_rows(self._x, slots, infos.column(("internal",), slots))
        self._state = None
        self._time[slots] = 0

    def act(self, action: Batch) -> Batch:
        self._decision, self._failed, self._intervened = None, self._nobody, self._nobody
        executed = action
        if self.ready:
            assert self._shield is not None
            self._decision = self._shield.decide(self._encoded(), action)
            executed, self._intervened = self._decision.action, self._decision.intervened
            self._failed = ~np.isfinite(self._decision.executed.score)
            if not self._failed.any():
                return executed
            executed = with_rows(executed, np.flatnonzero(self._failed), self._fall_back(self._failed))
        elif self.fallback is not None:
            executed = np.broadcast_to(self.fallback, action.shape)
        if executed is not action:
            self._intervened = (executed != action).reshape(self.num_envs, -1).any(axis=1)
        return executed

    def after(self, step: Step) -> NDArray[np.float64]:
        infos = step.infos
        self._observation = step.next_observation
        self._x = infos.column(("internal",), self.everyone)
        self._state = None
        self._time += 1
        intervened = self._intervened & step.live
        infos.publish("intervened", self.everyone, intervened)
        changed = np.flatnonzero(intervened)
        if len(changed):
            infos.publish("executed_action", changed, step.action[changed])
        if self._decision is not None:
            told = np.flatnonzero((self._intervened | self._decision.infeasible | self._failed) & step.live)
            if len(told):
                self._explain(self._decision, told, infos)
        if not self.intervention_penalty:
            return step.reward
        penalty = self.intervention_penalty * intervened
        infos.publish("reward_terms", self.everyone, -penalty, "intervention")
        return step.reward - penalty

    def _explain(self, decision: Decision, slots: NDArray[np.intp], infos: Infos) -> None:
        proposed, executed = decision.proposed.take(slots), decision.executed.take(slots)
        for name, values in (
            ("proposed", decision.proposed_action[slots]),
            ("value", proposed.score),
            ("executed_value", executed.score),
            ("p_safe", proposed.p_safe),
            ("executed_p_safe", executed.p_safe),
            ("constraint", proposed.constraint),
            ("margin", proposed.margin),
            ("step", proposed.step),
            ("infeasible", decision.infeasible[slots]),
            ("failed", self._failed[slots]),
        ):
            infos.publish("shield", slots, values, name)


class ActionShield(LayerWrapper):
    """:class:`ActionShieldLayer` around a ``gymnasium.Env``."""

    layer_type = ActionShieldLayer
    layer: ActionShieldLayer

    def action_masks(self) -> NDArray[np.bool_]:
        """
        :return: which actions pass, ``(k,)``
        """
        return self.layer.action_masks()[0]


class VecActionShield(VecLayerWrapper):
    """:class:`ActionShieldLayer` around SB3's ``VecEnv``."""

    layer_type = ActionShieldLayer
    layer: ActionShieldLayer

    def has_attr(self, attr_name: str) -> bool:
        return (attr_name == "action_masks" and not self.layer.spec.continuous) or super().has_attr(attr_name)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        if method_name == "action_masks":
            masks = self.layer.action_masks()
            return [masks[index] for index in self._get_indices(indices)]
        return super().env_method(method_name, *method_args, indices=indices, **method_kwargs)


class VectorActionShield(VectorLayerWrapper):
    """:class:`ActionShieldLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = ActionShieldLayer
    layer: ActionShieldLayer

    def action_masks(self) -> NDArray[np.bool_]:
        """
        :return: which actions pass, ``(n, k)``
        """
        return self.layer.action_masks()
