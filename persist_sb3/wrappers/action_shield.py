"""Keeps actions from being executed that would take the internal variables outside their limits."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from persist_sb3.batch import Batch, with_rows
from persist_sb3.curriculum import Demands, StageInForce
from persist_sb3.draws import Draws
from persist_sb3.infos import Infos
from persist_sb3.models.base import Model, rebuild
from persist_sb3.models.familiarity import Familiarity
from persist_sb3.models.imagination import Dynamics
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.observation import ObservationModel
from persist_sb3.models.safety import SafetyNetwork
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.planning import Planning
from persist_sb3.shield import BoxShield, Correction, Decision, EnumeratedShield, Projection
from persist_sb3.shield.amortised import AmortisedVerifier
from persist_sb3.shield.calibration import Calibration
from persist_sb3.shield.caution import CautiousCritic
from persist_sb3.shield.criteria import Criterion
from persist_sb3.shield.enumerated import Verifier
from persist_sb3.shield.lookahead import GUARDING, MODES, Function, LookAhead, Mode, trained, trainers
from persist_sb3.shield.rollouts import Policy, RolloutVerifier
from persist_sb3.state import last_loaded
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers.adapters import LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.intervening import InterveningLayer, InterveningOwner
from persist_sb3.wrappers.layer import Layer, Lookup, Step
from persist_sb3.wrappers.marking import Mark, find_mark

Shield = EnumeratedShield | BoxShield

#: What a model that was saved under this name must be.
KINDS: dict[str, type[Model]] = {
    "viability": ViabilityCritic,
    "internal_model": InternalModel,
    "world_model": ObservationModel,
    "familiarity": Familiarity,
    "safety": SafetyNetwork,
}
CALIBRATED: Literal["calibrated"] = "calibrated"

#: Least value of an action that passes, while nothing has been measured.
THRESHOLD = 0.2


class ShieldError(RuntimeError):
    """The shield cannot judge, and has no action to fall back on."""


class ActionShieldLayer(InterveningLayer):
    """
    Judges each proposed action with the models that callbacks train, and executes the nearest safe one where it does
    not pass; see :class:`~persist_sb3.shield.EnumeratedShield`, and :class:`~persist_sb3.shield.BoxShield` for Box
    actions. It must be the outermost layer that changes observations, since the models learn from what the policy sees.

    Who judges is the ``mode``:

    - ``"critic"``: the viability critic, which :class:`~persist_sb3.callbacks.ViabilityCallback` trains;
    - ``"search"``: imagined futures of every action (see :class:`~persist_sb3.shield.rollouts.RolloutVerifier`), by the
      models of ``InternalModelCallback`` and ``WorldModelCallback`` or known ``dynamics``, and the critic or a
      ``backup``. With known dynamics and a backup nothing need be learned, and the shield works from the first step;
    - ``"verify"``: the critic, and imagined futures of the actions that it values within ``band`` of the threshold;
    - ``"amortised"``: a network that :class:`~persist_sb3.callbacks.SafetyNetworkCallback` teaches what the search
      would say, once it agrees with the search in a share ``min_agreement`` of its verdicts.

    While the other models of a mode are not trained, the critic judges alone.

    Where a :class:`~persist_sb3.wrappers.BeliefState` lies below, the shield does not know the hidden variables either:
    the critic sees the belief's mean in their place, and each imagined future, the planner's too, begins with a sample
    of the belief. The models were trained on the truth, which is known in training only. A hidden variable without a
    belief is known to the shield from ``info["internal"]``.

    At every step it publishes ``info["intervened"]``. Where the action was changed, none passed, or a model failed,
    ``info["executed_action"]`` and ``info["shield"]`` tell what was done and why: the ``proposed`` action; ``value``
    (what the critic gives the proposed action) and ``executed_value``, in scaled margins; ``p_safe`` and
    ``executed_p_safe`` (by imagined futures, or as :class:`~persist_sb3.callbacks.CalibrationCallback` measured it; NaN
    where neither was asked); ``constraint`` (index of the one in danger), the ``margin`` that it was foreseen to be
    left with and the ``step`` at which it was foreseen broken (-1: not known, as always where the critic judges alone);
    ``infeasible`` (no action passed: the safest was taken); ``failed`` (a model answered with something that is not a
    number: ``fallback`` was executed). In actions that can be enumerated, ``action_masks()`` tells which pass.

    A model is trained when it has taken ``min_updates`` gradient steps; until the critic is, the shield waits. In a
    replay it takes the models that were loaded with the policy.

    :param threshold: least value of an action that passes, in scaled margins (1 at the setpoint, 0 at a limit); or
        ``"calibrated"``: the least with which a share ``conf`` of the decisions near the boundary is safe, as
        :class:`~persist_sb3.callbacks.CalibrationCallback` measures it (:data:`THRESHOLD` until it has)
    :param correction: what replaces an action that does not pass: ``"project"``, ``"replace"`` or ``"mask"``
    :param projection: how the nearest safe Box action is looked for: ``"cem"``, or ``"gradient"``, which is the
        better one from about four components on
    :param inset: how far inside of what passes the nearest safe Box action is looked for, as a share of the way from
        the threshold to the value of the safest one. 0 changes least. Where whole regions of actions do the same, an
        action at the threshold lies at the edge of a region, and may do what the refused one does: 0.5 avoids that
    :param intervention_penalty: subtracted from the reward where an action was changed
    :param min_updates: gradient steps of a model before it is trusted
    :param fallback: an action known to be safe, or a list of such actions, of which one is drawn for each step. It is
        executed while the shield waits, and where a model fails. Default: proposed actions pass while it waits, and a
        model that fails stops the run
    :param mode: who judges: ``"critic"``, ``"search"``, ``"verify"`` or ``"amortised"``
    :param conf: confidence that an action is safe, in ``(0, 1]``; see :func:`~persist_sb3.shield.criteria.passes`
    :param horizon: steps looked ahead
    :param rollouts: imagined futures of each action
    :param criterion: when they are safe enough: ``"probability"``, ``"worst_case"`` or ``"cvar"``
    :param band: half-width of the band about the threshold, in scaled margins
    :param dynamics: known dynamics: a function of observations, internal variables and actions, in batches, that
        returns the next observations and internal variables; or an object like those in
        :mod:`~persist_sb3.models.imagination`
    :param backup: a policy known to be safe, which goes on after the action in imagination: a function of observations
        and internal variables, in batches, that returns actions. Default: the critic's best action
    :param min_agreement: share of verdicts in which the safety network must agree with the search
    :param infeasible: what is executed where no action passes: ``"safest"``, or ``"planner"``: the first step of a
        course of ``horizon`` actions that stays inside and ends where the critic values the state at ``threshold`` or
        more (see :class:`~persist_sb3.planning.Planning`), and the safest where there is no such course. It takes the
        models of ``"search"``, in any mode
    :param caution: how far the threshold rises, in scaled margins, where the internal model's ensemble disagrees twice
        as much as is typical (:class:`~persist_sb3.shield.caution.CautiousCritic`). 0 asks for no such model
    :param guards: internal variables that it keeps inside their limits, while the others are left to the policy (all).
        Leave out what lies further ahead than the critic sees (``1 / (1 - gamma)`` steps), such as a store that runs
        out over hundreds of steps: when it is about to, no action helps, and until then the critic forbids detours
        that lead to more of it
    :raises ValueError: if a parameter is out of its range
    """

    #: Tells environments that draw themselves what was changed, before the step.
    mark: Mark | None = None

    def __init__(
        self,
        threshold: float | Literal["calibrated"] = THRESHOLD,
        correction: Correction = "project",
        intervention_penalty: float = 0.0,
        min_updates: int = 500,
        fallback: int | Sequence[float] | Sequence[Sequence[float]] | None = None,
        projection: Projection = "cem",
        mode: Mode = "critic",
        conf: float = 0.9,
        horizon: int = 5,
        rollouts: int = 16,
        criterion: Criterion = "probability",
        band: float = 0.1,
        dynamics: Function | Dynamics | None = None,
        backup: Policy | None = None,
        min_agreement: float = 0.9,
        infeasible: Literal["safest", "planner"] = "safest",
        caution: float = 0.0,
        guards: Sequence[str] | None = None,
        inset: float = 0.0,
    ) -> None:
        self.calibrated = threshold == CALIBRATED
        if isinstance(threshold, str) and not self.calibrated:
            raise ValueError(f"threshold={threshold!r} must be a number or {CALIBRATED!r}")
        self.threshold = THRESHOLD if isinstance(threshold, str) else threshold
        if not np.isfinite(self.threshold):
            raise ValueError(f"threshold={threshold} must be finite; margins are 1 at the setpoint and 0 at a limit")
        if self.calibrated and not 0.0 < conf < 1.0:
            raise ValueError(f"conf={conf} must be in (0, 1) if threshold={CALIBRATED!r}")
        if correction not in ("project", "replace", "mask"):
            raise ValueError(f"correction={correction!r} must be 'project', 'replace' or 'mask'")
        if projection not in ("cem", "gradient"):
            raise ValueError(f"projection={projection!r} must be 'cem' or 'gradient'")
        if not 0.0 <= inset <= 1.0:
            raise ValueError(f"inset={inset} must be in [0, 1]")
        if not (np.isfinite(intervention_penalty) and intervention_penalty >= 0.0):
            raise ValueError(f"intervention_penalty={intervention_penalty} must be a finite number, at least 0")
        if min_updates < 0:
            raise ValueError(f"min_updates={min_updates} must not be negative")
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} must be {', '.join(map(repr, MODES))}")
        if not band >= 0.0:
            raise ValueError(f"band={band} must be at least 0")
        if not 0.0 <= min_agreement <= 1.0:
            raise ValueError(f"min_agreement={min_agreement} must be in [0, 1]")
        if infeasible not in ("safest", "planner"):
            raise ValueError(f"infeasible={infeasible!r} must be 'safest' or 'planner'")
        if not (np.isfinite(caution) and caution >= 0.0):
            raise ValueError(f"caution={caution} must be a finite number, at least 0")
        if guards is not None and (isinstance(guards, str) or not guards):
            raise ValueError(f"guards={guards!r} must be a list of internal variables, at least one")
        self.guards = guards
        self.infeasible = infeasible
        self.caution = caution
        self.mode = mode
        self.band = band
        self.min_agreement = min_agreement
        #: Parameters of the search.
        self.lookahead = LookAhead(conf, horizon, rollouts, criterion, self.threshold, dynamics, backup)
        self.correction: Correction = correction
        self.intervention_penalty = intervention_penalty
        self.min_updates = min_updates
        self._fallback = fallback
        self.projection: Projection = projection
        self.inset = inset

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self._whole, viability = self.spec, self.spec.viability
        try:
            self.guarded = viability if self.guards is None else viability.about(self.guards)
        except ValueError as error:
            raise RuntimeError(f"ActionShield: {error}") from error
        self.spec = StateSpec(observation_space, action_space, self.guarded)
        self._numbers = np.array([viability.names.index(name) for name in self.guarded.names])
        self.lookahead = replace(self.lookahead, belief=self.belief_entries)
        if self.spec.continuous and self.correction == "mask":
            raise RuntimeError(f"correction='mask' cannot mask {action_space}: use 'project' or 'replace'")
        for key, value, usual in (("inset", self.inset, 0.0), ("projection", self.projection, "cem")):
            if value != usual and not self.spec.continuous:
                raise RuntimeError(f"{key}={value!r} is about Box actions, and {action_space} is none: leave it out")
        #: Actions known to be safe, ``(k, ...)``.
        self.fallback: NDArray[Any] | None = None
        if self._fallback is not None:
            self.fallback = self._safe_actions(action_space)
        if self.mode == "amortised" and self.lookahead.criterion != "probability":
            raise RuntimeError(
                f"mode='amortised' learns how probable safety is, and criterion={self.lookahead.criterion!r} cannot be "
                "had from that: use criterion='probability', or mode='verify'"
            )
        self._needed = self._names({})
        self._models: dict[str, Any] = {}
        self._calibration: Calibration | None = None
        self._shield: Shield | None = None
        self._critic_alone: Shield | None = None
        self._verifier: RolloutVerifier | AmortisedVerifier | None = None
        self._demanded = False
        self._bound = self._warned = self._warned_of_failure = False
        self._decision: Decision | None = None
        self._nobody = self._failed = np.zeros(num_envs, dtype=bool)
        # Drawn anew for every episode: what falls back at one of its steps then depends on nothing but that step.
        self._chance = np.zeros(num_envs)

    def _safe_actions(self, action_space: spaces.Space[Any]) -> NDArray[Any]:
        """
        :param action_space: of one environment
        :return: the ``fallback`` actions, ``(k, ...)``
        :raises RuntimeError: if one is not an action
        """
        try:
            given = np.array(self._fallback, dtype=np.float64)
        except (TypeError, ValueError):
            given = np.empty(0)
        listed = given[None] if given.shape == action_space.shape else given
        actions = listed.astype(action_space.dtype)
        rounded = np.issubdtype(actions.dtype, np.integer) and (actions != listed).any()
        if rounded or not actions.size or not all(map(action_space.contains, actions)):
            raise RuntimeError(
                f"fallback={self._fallback!r} is not in the action space {action_space}, nor a list of actions that are"
            )
        return actions

    def _names(self, models: Mapping[str, Any]) -> tuple[str, ...]:
        """
        :param models: those that there are, by name
        :return: names of the models that the mode and the planner take, there or not
        """
        search = self.lookahead.needs(models)
        planner = search if self.infeasible == "planner" else ()
        caution = ("viability", "internal_model", "familiarity") if self.caution else ()
        return tuple(dict.fromkeys((*self._names_of_mode(search), *planner, *caution)))

    def _names_of_mode(self, search: tuple[str, ...]) -> tuple[str, ...]:
        """
        :param search: names of the models that a search takes
        :return: names of those that the mode takes
        """
        if self.mode == "critic":
            return ("viability",)
        if self.mode == "amortised":
            return tuple(dict.fromkeys(("viability", *search, "safety")))
        if self.mode == "search" and not self.spec.continuous:
            return search
        return tuple(dict.fromkeys(("viability", *search)))

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        self._bound = True
        self._calibration = bundle.get("calibration")
        self._use(bundle)

    def _use(self, bundle: Mapping[str, Any]) -> None:
        """
        :param bundle: the models that there are, by name
        """
        self._needed = self._names(bundle)
        models = {name: bundle[name] for name in self._needed if name in bundle}
        if models.keys() == self._models.keys() and all(models[name] is self._models[name] for name in models):
            return
        self._models, self._shield, self._critic_alone = models, None, None
        if "viability" in models:
            self._critic_alone = self._make(None, self.band, models["viability"])

    def _complete(self) -> Shield | None:
        """
        :return: the shield of the mode, whose models are all there
        """
        models, search = self._models, self.lookahead
        if self.caution:
            cautious = CautiousCritic(
                models["viability"], models["internal_model"], models["familiarity"], self.caution
            )
            models = {**models, "viability": cautious}
        critic: Any = models.get("viability")
        if self.mode == "critic":
            return self._make(None, self.band, critic)
        if self.mode == "amortised":
            network: SafetyNetwork = models["safety"]
            sketch = search.sketch(self.spec, models, network.foresight)
            self._verifier = AmortisedVerifier(network, critic, sketch, search.conf)
            return self._make(self._verifier, np.inf, critic)
        self._verifier = search.verifier(self.spec, models)
        return self._make(self._verifier, self.band if self.mode == "verify" else np.inf, critic)

    def _make(self, verifier: Verifier | None, band: float, critic: Any) -> Shield:
        if not self.spec.continuous:
            return EnumeratedShield(self.spec, critic, self.threshold, self.correction, verifier, band)
        assert critic is not None
        return BoxShield(
            self.spec,
            critic,
            self.threshold,
            self._streams,
            self.correction,
            self.projection,
            self.inset,
            verifier,
            band,
        )

    @property
    def wiring_error(self) -> RuntimeError | None:
        if not (self._bound or self._models):
            return None
        missing = [name for name in self._needed if name not in self._models]
        if self.calibrated and self._calibration is None:
            missing.append("calibration")
        if missing:
            asked = {"mode": self.mode, "infeasible": self.infeasible, "caution": self.caution}
            own = {key: value for key, value in asked.items() if value not in ("critic", "safest", 0)}
            return ShieldError(
                f"ActionShield({', '.join(f'{key}={value!r}' for key, value in own.items())}) has no part "
                f"{', '.join(map(repr, missing))}: add {trainers(missing)} to the callbacks of the training"
            )
        return self._misplaced()

    def _misplaced(self) -> RuntimeError | None:
        """
        :return: what to raise if the models see other observations than this layer does
        """
        for name, model in self._models.items():
            if model.spec.observation_dim != self.spec.observation_dim:
                return ShieldError(
                    f"ActionShield sees observations of {self.spec.observation_dim} numbers, and {name!r} learns from "
                    f"the {model.spec.observation_dim} that the policy sees: something around the shield changes "
                    "observations. Put ActionShield around it"
                )
        return None

    def _find_models(self) -> None:
        """
        Take the models out of the policy that this process has loaded, since no callback has brought them all.

        :raises ShieldError: if there are callbacks, or a loaded policy, but not all models; or if a loaded one is of
            another environment
        """
        if not self._bound:
            loaded = last_loaded()
            self._load({} if loaded is None else loaded.pending)
        error = self.wiring_error
        if error is not None:
            raise error
        if not self._models and not self._warned:
            self._warned = True
            warnings.warn(
                "ActionShield has no models, and lets every action pass: train with "
                "persist_sb3.callbacks.ViabilityCallback, or load a model that was trained with it",
                stacklevel=2,
            )

    def _load(self, pending: Mapping[str, Any]) -> None:
        """
        :param pending: what was saved, by name
        :raises ShieldError: if a model is of another environment
        """
        names = [name for name in self._names({}) if name in pending]
        specs = {name: self.spec if name in GUARDING else self._whole for name in names}
        try:
            self._use({name: rebuild(pending[name], specs[name], KINDS[name]) for name in names})
            if names and "calibration" in pending:
                self._calibration = rebuild(pending["calibration"], self.spec, Calibration)
        except ValueError as error:
            raise ShieldError(f"ActionShield cannot use a model that was loaded: {error}") from error

    def _judge(self) -> Shield | None:
        """
        :return: who judges now; None while the shield waits
        """
        if len(self._models) < len(self._needed) or (self.calibrated and self._calibration is None):
            self._find_models()
        shield = self._most_trusted()
        if shield is not None:
            calibration = self._calibration if self.calibrated else None
            self._demand(shield, self.threshold if calibration is None else calibration.threshold)
        return shield

    def _demand(self, shield: Shield, threshold: float) -> None:
        """
        Ask of the shield what is in force now. Models know the declared constraints, whatever the stage: what is safe
        within wider ones is what has a value lower by so much (:meth:`ViabilitySet.slack
        <persist_sb3.viability.ViabilitySet.slack>`), since the backup that the critic is trained by commutes with
        adding a constant to every margin. So nothing need be learned anew when they tighten.

        :param shield: that judges now
        :param threshold: where no stage says otherwise
        """
        if self.curriculum is None and not self._demanded:
            shield.threshold = threshold
            return
        self._demanded = True
        demands = self.demands
        limit = -self.spec.viability.slack(demands.tightness)
        asked = demands.threshold
        shield.threshold = limit + (threshold if asked is None else asked)
        if self._verifier is not None:
            self._verifier.conf = self.lookahead.conf if demands.conf is None else demands.conf
        if isinstance(self._verifier, RolloutVerifier):
            self._verifier.limit = limit
            self._verifier.threshold = limit + (self.lookahead.threshold if asked is None else asked)

    def follow(self, curriculum: StageInForce | None) -> None:
        for demands in () if curriculum is None else curriculum.plan:
            self._check_demands(demands)
        super().follow(curriculum)

    def _check_demands(self, demands: Demands) -> None:
        """
        :param demands: of a stage
        :raises RuntimeError: if the shield cannot do what it asks, or would be loosened afterwards
        """
        if self.mode == "amortised" and (demands.tightness != 1.0 or demands.threshold is not None):
            raise RuntimeError(
                "mode='amortised' learns what is safe within the declared constraints and threshold: a curriculum can "
                "change conf alone. Use mode='verify', or leave tightness and threshold out of the stages"
            )
        if self.calibrated and (demands.threshold is not None or demands.conf is not None):
            raise RuntimeError(
                f"threshold={CALIBRATED!r} measures the threshold for the declared conf: leave threshold and conf out "
                "of the stages"
            )
        if self.mode == "critic" and demands.conf is not None:
            raise RuntimeError(f"conf={demands.conf} of a stage is nothing that mode='critic' asks: use mode='verify'")
        for key, own in (("threshold", self.threshold), ("conf", self.lookahead.conf)):
            value = getattr(demands, key)
            if value is not None and value > own:
                raise RuntimeError(
                    f"a stage asks for {key}={value}, more than ActionShield's {key}={own}, which follows: stages "
                    "may only tighten"
                )

    def _most_trusted(self) -> Shield | None:
        if len(self._models) == len(self._needed) and trained(self._models.values(), self.min_updates):
            safety = self._models.get("safety")
            if safety is None or float(safety.agreement) >= self.min_agreement:
                self._shield = self._shield or self._complete()
                return self._shield
        critic = self._models.get("viability")
        return self._critic_alone if critic is not None and trained([critic], self.min_updates) else None

    @property
    def ready(self) -> bool:
        """Whether actions are judged: there are models, and they are trained enough."""
        return self._judge() is not None

    @property
    def decision(self) -> Decision | None:
        """What was decided at the last step; None while the shield waits."""
        return self._decision

    @property
    def updates(self) -> int:
        """Gradient steps of the least trained of its models, 0 where one is missing."""
        missing = any(name not in self._models for name in self._needed)
        return 0 if missing else min((int(model.updates) for model in self._models.values()), default=0)

    def action_masks(self) -> NDArray[np.bool_]:
        """
        :return: which actions pass; where none does, the safest alone, and where the fallback is to be executed, that
            alone, ``(n, k)``
        :raises ShieldError: if a model fails, and there is no ``fallback``
        """
        shield = self._judge()
        if shield is None:
            masks = np.full((self.num_envs, len(self.spec.actions)), self.fallback is None)
            if self.fallback is not None:
                masks[self.everyone, self.spec.index(self._drawn(self.fallback, self.everyone))] = True
            return masks
        assert isinstance(shield, EnumeratedShield)
        masks = shield.permitted(self._encoded())
        failed = np.logical_not(masks.any(axis=1))
        if failed.any():
            masks[failed, self.spec.index(self._fall_back(failed))] = True
        return masks

    def _fall_back(self, failed: NDArray[np.bool_]) -> NDArray[Any]:
        """
        :param failed: where a model failed, ``(n,)``
        :return: the fallback there, ``(k, ...)``
        :raises ShieldError: if there is none
        """
        where = ", ".join(f"environment {slot} at step {self.age(slot)}" for slot in np.flatnonzero(failed))
        problem = f"ActionShield: a model answered with something that is not a finite number, in {where}"
        if self.fallback is None:
            raise ShieldError(f"{problem}. ActionShield(fallback=...) names actions to be executed instead")
        if not self._warned_of_failure:
            self._warned_of_failure = True
            warnings.warn(f"{problem}: the fallback is executed there, and wherever it happens again", stacklevel=2)
        return self._drawn(self.fallback, np.flatnonzero(failed))

    def _drawn(self, actions: NDArray[Any], slots: NDArray[np.intp]) -> NDArray[Any]:
        """
        :param actions: known to be safe, ``(k, ...)``
        :param slots: environments, ``(r,)``
        :return: one action for each, drawn for the step that it is at, ``(r, ...)``
        """
        key = (self._chance[slots] * 2.0**53).astype(np.uint64) + self.age(slots).astype(np.uint64)
        return actions[(Draws(key).random(len(slots), np.float64) * len(actions)).astype(np.intp)]

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        super().begin(slots, observation, infos)
        if self.fallback is not None and len(self.fallback) > 1:
            self._chance[slots] = self._streams.uniform(slots, 1)[:, 0]

    def act(self, action: Batch) -> Batch:
        executed = self._decide(action)
        if self.mark is not None and self._intervened.any():
            changed = np.flatnonzero(self._intervened)
            self.mark(changed, action[changed], executed[changed])
        return executed

    def _decide(self, action: NDArray[Any]) -> NDArray[Any]:
        """
        :param action: proposed, ``(n, ...)``
        :return: what is to be executed, ``(n, ...)``
        """
        self._decision, self._failed, self._intervened = None, self._nobody, self._nobody
        executed = action
        shield = self._judge()
        if shield is not None:
            self._decision = shield.decide(self._encoded(), action)
            executed, self._intervened = self._decision.action, self._decision.intervened
            self._failed = ~np.isfinite(self._decision.executed.score)
            if self.infeasible == "planner" and shield is self._shield:
                executed = self._plan(shield.threshold, self._decision)
            if not self._failed.any():
                return executed
            executed = with_rows(executed, np.flatnonzero(self._failed), self._fall_back(self._failed))
        elif self.fallback is not None:
            executed = self._drawn(self.fallback, self.everyone)
        if executed is not action:
            self._intervened = (executed != action).reshape(self.num_envs, -1).any(axis=1)
        return executed

    def _plan(self, threshold: float, decision: Decision) -> NDArray[Any]:
        """
        :param threshold: least value at the end of a course
        :param decision: gets to know what the planner found, where no action passes
        :return: what is to be executed, ``(n, ...)``
        """
        lost = np.flatnonzero(decision.infeasible & ~self._failed)
        if not len(lost):
            return decision.action
        search = self.lookahead
        planning = Planning(horizon=search.horizon, conf=search.conf, threshold=threshold, rollouts=search.rollouts)
        planner = planning.planner(self.spec, self._models, self._streams, search.dynamics, self._belief)
        plan = planner.plan(self._encoded()[lost], lost)
        found = lost[plan.feasible]
        action = with_rows(decision.action, found, plan.action[plan.feasible].astype(decision.action.dtype))
        decision.executed.score[found] = plan.margin[plan.feasible]
        decision.executed.p_safe[found] = np.nan
        self._intervened = (action != decision.proposed_action).reshape(self.num_envs, -1).any(axis=1)
        return action

    def after(self, step: Step) -> NDArray[np.float64]:
        reward, infos = super().after(step), step.infos
        if self._decision is not None:
            told = np.flatnonzero((self._intervened | self._decision.infeasible | self._failed) & step.live)
            if len(told):
                self._explain(self._decision, told, infos)
        if not self.intervention_penalty:
            return reward
        penalty = self.intervention_penalty * self._intervened
        infos.publish("reward_terms", self.everyone, -penalty, "intervention")
        return reward - penalty

    def _explain(self, decision: Decision, slots: NDArray[np.intp], infos: Infos) -> None:
        proposed, executed = decision.proposed.take(slots), decision.executed.take(slots)
        if self._calibration is not None:
            for verdict in (proposed, executed):
                unknown = np.isnan(verdict.p_safe)
                verdict.p_safe[unknown] = self._calibration.p_safe(verdict.score[unknown])
        for name, values in (
            ("proposed", decision.proposed_action[slots]),
            ("value", proposed.score),
            ("executed_value", executed.score),
            ("p_safe", proposed.p_safe),
            ("executed_p_safe", executed.p_safe),
            ("constraint", self._numbers[proposed.constraint]),
            ("margin", proposed.margin),
            ("step", proposed.step),
            ("infeasible", decision.infeasible[slots]),
            ("failed", self._failed[slots]),
        ):
            infos.publish("shield", slots, values, name)


class _Declarations(InterveningOwner):
    """What a shield says about itself, for the layers and callbacks above."""

    layer: ActionShieldLayer

    def _attach(self, layer: Layer, num_envs: int, env: Any, observation_space: Any, action_space: Any) -> None:
        super()._attach(layer, num_envs, env, observation_space, action_space)
        self.layer.mark = find_mark(env)

    @property
    def lookahead(self) -> LookAhead:
        """Parameters of the search."""
        return self.layer.lookahead

    @property
    def guarded(self) -> ViabilitySet:
        """The constraints that the shield keeps."""
        return self.layer.guarded


class ActionShield(_Declarations, LayerWrapper):
    """:class:`ActionShieldLayer` around a ``gymnasium.Env``."""

    layer_type = ActionShieldLayer

    def action_masks(self) -> NDArray[np.bool_]:
        """
        :return: which actions pass, ``(k,)``
        """
        return self.layer.action_masks()[0]


class VecActionShield(_Declarations, VecLayerWrapper):
    """:class:`ActionShieldLayer` around SB3's ``VecEnv``."""

    layer_type = ActionShieldLayer

    def has_attr(self, attr_name: str) -> bool:
        return (attr_name == "action_masks" and not self.layer.spec.continuous) or super().has_attr(attr_name)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        if method_name == "action_masks":
            masks = self.layer.action_masks()
            return [masks[index] for index in self._get_indices(indices)]
        return super().env_method(method_name, *method_args, indices=indices, **method_kwargs)


class VectorActionShield(_Declarations, VectorLayerWrapper):
    """:class:`ActionShieldLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = ActionShieldLayer

    def action_masks(self) -> NDArray[np.bool_]:
        """
        :return: which actions pass, ``(n, k)``
        """
        return self.layer.action_masks()
