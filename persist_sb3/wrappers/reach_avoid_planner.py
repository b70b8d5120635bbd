"""An agent that plans: it imagines courses of action, and takes the first step of the best that stays in the limits."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch
from persist_sb3.infos import Infos
from persist_sb3.models.base import Model, rebuild
from persist_sb3.models.imagination import Dynamics
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.observation import ObservationModel
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.planning import Plan, Planner, Planning, Progress
from persist_sb3.shield.lookahead import Function, check_dynamics, foreseeing, trained, trainers
from persist_sb3.state import last_loaded
from persist_sb3.wrappers.adapters import LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.intervening import InterveningLayer, InterveningOwner
from persist_sb3.wrappers.layer import Lookup, Step

#: Models that the planner can use, and what they must be.
KINDS: dict[str, type[Model]] = {
    "viability": ViabilityCritic,
    "internal_model": InternalModel,
    "world_model": ObservationModel,
}


class PlannerError(RuntimeError):
    """The planner has no model of the world, or one that does not answer with numbers."""


class ReachAvoidPlannerLayer(InterveningLayer):
    """
    Executes the first action of the best course that :class:`~persist_sb3.planning.Planning` finds, whatever the policy
    proposes: model predictive control, as an agent by itself. It imagines with the models of ``InternalModelCallback``
    and ``WorldModelCallback`` (of the latter alone, if its ``kind`` is ``"latent"``), or with known ``dynamics``; where
    ``ViabilityCallback`` trains a critic beside them, a course must end where that values it at ``threshold`` or more.
    It must be the outermost layer that changes observations, since the models learn from what the policy sees, and
    stands in the place of an :class:`~persist_sb3.wrappers.ActionShield`, not inside or around one.

    Where a :class:`~persist_sb3.wrappers.BeliefState` lies below, the planner does not know the hidden variables
    either: each imagined future begins with a sample of the belief, the same samples for every course; with one future,
    or without chance, with the belief's mean.

    Until the models that there are have taken ``min_updates`` gradient steps, the policy's actions pass, so it is the
    policy that collects the first transitions. Known dynamics need no wait. In a replay the layer takes the models that
    were loaded with the policy.

    At every step it publishes ``info["intervened"]`` (another action than the proposed one was executed, and
    ``info["executed_action"]`` says which) and, where it planned, ``info["planner"]``: whether the course is
    ``feasible``, its ``margin``, its ``score``, and with a target the share of futures that have ``reached`` it.

    :param target: constraints on internal variables, such as ``["energy >= 0.8"]``, all of which hold in the target.
        Default: stay in the middle of the limits
    :param horizon: steps planned
    :param conf: share of imagined futures that must stay inside the limits, in ``(0, 1]``
    :param threshold: least value at the end, in scaled margins
    :param rollouts: futures of each course
    :param chance: whether chance is drawn in imagination; else everything takes its likeliest course
    :param width: courses that the beam keeps at each step (enumerable actions)
    :param samples: courses drawn in each round (Box actions)
    :param rounds: of drawing (Box actions)
    :param progress: what a state is worth besides: a function of observations and internal variables, in batches
    :param dynamics: known dynamics: a function of observations, internal variables and actions, in batches, that
        returns the next observations and internal variables; or an object like those in
        :mod:`~persist_sb3.models.imagination`
    :param min_updates: gradient steps of a model before it is trusted
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        target: Sequence[str] | None = None,
        horizon: int = 8,
        conf: float = 0.9,
        threshold: float = 0.2,
        rollouts: int = 5,
        chance: bool = True,
        width: int = 16,
        samples: int = 64,
        rounds: int = 4,
        progress: Progress | None = None,
        dynamics: Function | Dynamics | None = None,
        min_updates: int = 500,
    ) -> None:
        if min_updates < 0:
            raise ValueError(f"min_updates={min_updates} must not be negative")
        check_dynamics(dynamics)
        self.planning = Planning(target, horizon, conf, threshold, rollouts, chance, width, samples, rounds, progress)
        self.dynamics = dynamics
        self.min_updates = min_updates
        #: Models without which it cannot plan.
        self.needed = foreseeing(dynamics, {})

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        try:
            self.planning.target_set(self.spec)
            if not self.spec.continuous:
                _ = self.spec.actions
        except ValueError as error:
            raise RuntimeError(f"ReachAvoidPlanner: {error}") from error
        self._models: dict[str, Any] = {}
        self._bound = self._looked = False
        self._planner: Planner | None = None
        self._plan: Plan | None = None

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        self._bound, self._looked = True, False
        self._use(bundle)

    def _use(self, bundle: Mapping[str, Any]) -> None:
        """
        :param bundle: the models that there are, by name
        """
        self.needed = foreseeing(self.dynamics, bundle)
        models = {name: bundle[name] for name in (*self.needed, "viability") if name in bundle}
        if models.keys() != self._models.keys() or any(models[name] is not self._models[name] for name in models):
            self._models, self._planner = models, None

    @property
    def wiring_error(self) -> RuntimeError | None:
        try:
            self._find_models()
        except PlannerError as error:
            return error
        return None

    @property
    def _missing(self) -> list[str]:
        return [name for name in self.needed if name not in self._models]

    def _find_models(self) -> None:
        """
        Take the models out of the policy that this process has loaded, where no callback has brought them all.

        :raises PlannerError: if there are callbacks, or a loaded policy, but no models to plan with; or if a loaded one
            is of another environment
        """
        if self._looked or (self._bound and not self._missing):
            return
        loaded = last_loaded()
        pending = {} if loaded is None else loaded.pending
        names = [name for name in (*foreseeing(self.dynamics, {}), "viability") if name in pending]
        try:
            found = {name: rebuild(pending[name], self.spec, KINDS[name]) for name in names}
        except ValueError as error:
            raise PlannerError(f"ReachAvoidPlanner cannot use a model that was loaded: {error}") from error
        self._use(found | self._models)
        missing = self._missing
        if missing and (self._bound or found):
            raise PlannerError(
                f"ReachAvoidPlanner(dynamics=None) has no part {', '.join(map(repr, missing))}: train with "
                f"{trainers(missing)}, or give it known dynamics"
            )
        self._looked = True
        if missing:
            warnings.warn(
                "ReachAvoidPlanner has no models, and lets every action pass: train with "
                "persist_sb3.callbacks.WorldModelCallback and InternalModelCallback, load a model that was trained "
                "with them, or give it known dynamics",
                stacklevel=2,
            )

    @property
    def planner(self) -> Planner | None:
        """Who plans now; None while there are no models, or they are not trained enough."""
        self._find_models()
        if self._planner is None and not self._missing and trained(self._models.values(), self.min_updates):
            self._planner = self.planning.planner(self.spec, self._models, self._streams, self.dynamics, self._belief)
        return self._planner

    @property
    def plan(self) -> Plan | None:
        """
        The plan for the states that the environments are in; None while nobody plans.

        :raises PlannerError: if a model answers with something that is not a number
        """
        planner = self.planner
        if self._plan is None and planner is not None:
            self._plan = planner.plan(self._encoded(), self.everyone)
            failed = np.flatnonzero(~np.isfinite(self._plan.margin))
            if len(failed):
                raise PlannerError(
                    "ReachAvoidPlanner: in every course that was imagined for environments "
                    f"{', '.join(map(str, failed))} a model answered with something that is not a finite number. "
                    "It has diverged: lower its learning_rate"
                )
        return self._plan

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        super().begin(slots, observation, infos)
        self._plan = None
        if self._planner is not None:
            self._planner.forget(slots)

    def act(self, action: Batch) -> Batch:
        plan = self.plan
        self._intervened = np.zeros(self.num_envs, dtype=bool)
        if plan is None:
            return action
        self._intervened = (plan.action != action).reshape(self.num_envs, -1).any(axis=1)
        return plan.action.astype(action.dtype)

    def after(self, step: Step) -> NDArray[np.float64]:
        reward, plan = super().after(step), self._plan
        self._plan = None
        planned = np.flatnonzero(step.live)
        if plan is not None and len(planned):
            for name in ("feasible", "margin", "score", "reached"):
                step.infos.publish("planner", planned, getattr(plan, name)[planned], name)
        return reward


class ReachAvoidPlanner(InterveningOwner, LayerWrapper):
    """:class:`ReachAvoidPlannerLayer` around a ``gymnasium.Env``."""

    layer_type = ReachAvoidPlannerLayer
    layer: ReachAvoidPlannerLayer


class VecReachAvoidPlanner(InterveningOwner, VecLayerWrapper):
    """:class:`ReachAvoidPlannerLayer` around SB3's ``VecEnv``."""

    layer_type = ReachAvoidPlannerLayer
    layer: ReachAvoidPlannerLayer


class VectorReachAvoidPlanner(InterveningOwner, VectorLayerWrapper):
    """:class:`ReachAvoidPlannerLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = ReachAvoidPlannerLayer
    layer: ReachAvoidPlannerLayer


class PlannerPolicy:
    """
    The planner in the place of a model, with SB3's ``predict``: for :func:`~persist_sb3.recording.record`, and for
    evaluations. It acts by what the layer sees, and does not look at observations.

    :param venv: the environments, the planner around them
    """

    def __init__(self, venv: VecReachAvoidPlanner) -> None:
        self._layer = venv.layer

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[Any], Any]:
        """
        :param observation: not looked at
        :param state: given back as it is
        :param episode_start: not looked at
        :param deterministic: plans always are
        :return: actions, ``(n, ...)``, and the state
        :raises PlannerError: if there are no models to plan with, or they are not trained enough
        """
        plan = self._layer.plan
        if plan is None:
            raise PlannerError(
                "PlannerPolicy cannot plan: the models are missing, or have taken fewer gradient steps than "
                f"min_updates={self._layer.min_updates}"
            )
        return plan.action, state
