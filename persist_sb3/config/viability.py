"""Where the internal variables must stay, and who sees to it."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from persist_sb3.config.section import Count, Entry, NonNegative, Positive, Section, Share, given, listed
from persist_sb3.config.train import ON_POLICY
from persist_sb3.shield.criteria import Criterion
from persist_sb3.shield.enumerated import Correction
from persist_sb3.shield.lookahead import Mode
from persist_sb3.shield.projection import Projection


class ShieldSection(Section):
    """
    :param mode: who judges the actions, see :class:`~persist_sb3.wrappers.ActionShield`. Default: ``"verify"`` if
        ``conf``, ``horizon`` or ``criterion`` asks for a look ahead, else ``"critic"``
    :param conf: confidence with which an action must be safe, ``alpha``. Default: the shield's own
    :param horizon: steps that are foreseen. Default: the shield's own
    :param criterion: when imagined futures are safe enough, see :func:`~persist_sb3.shield.criteria.passes`. Default:
        ``"probability"``, a share ``conf`` of them is
    :param threshold: least value of an action that passes, in scaled margins; or ``"calibrated"``: the least with which
        a share ``conf`` of them is safe, as measured in training
    :param correction: what replaces an action that does not pass. Default: ``"mask"`` for PPO_MASK, else ``"project"``
    :param projection: how the nearest safe Box action is looked for
    :param inset: how far inside of what passes it is looked for, from 0 to 1
    :param intervention_penalty: what a changed action costs the policy that proposed it
    :param min_updates: gradient steps of a model before it is trusted
    :param fallback: an action known to be safe, or a list of such actions, of which one is drawn for each step;
        executed while the shield waits and where a model fails
    :param infeasible: what is executed where no action passes: ``"safest"``, or ``"planner"``: the first step of a
        planned course that stays inside
    :param caution: how far the threshold rises where the internal model's networks disagree twice as much as is typical
    :param guards: internal variables that it keeps inside their limits. Default: all
    :param residual: let the critic learn differences from the margins at hand, so that it knows a limit before the
        agent has been there
    :param pieces: of a Box of actions, each with values of its own, see
        :class:`~persist_sb3.callbacks.ViabilityCallback`. Default: none
    """

    mode: Mode | None = None
    conf: Share | None = None
    horizon: Count | None = None
    criterion: Criterion | None = None
    threshold: float | Literal["calibrated"] = 0.2
    correction: Correction | None = None
    projection: Projection = "cem"
    inset: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    intervention_penalty: NonNegative = 0.0
    min_updates: Annotated[int, Field(ge=0)] = 500
    fallback: int | tuple[int, ...] | tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None
    infeasible: Literal["safest", "planner"] = "safest"
    caution: NonNegative = 0.0
    guards: tuple[str, ...] | None = None
    residual: bool = False
    pieces: Annotated[int, Field(ge=2)] | None = None

    @property
    def judge(self) -> Mode:
        """The mode, given or default."""
        if self.mode is not None:
            return self.mode
        sure = None if self.threshold == "calibrated" else self.conf
        asks = any(asked is not None for asked in (self.horizon, self.criterion, sure))
        return "verify" if asks else "critic"

    @property
    def looks_ahead(self) -> bool:
        """Whether it, or its planner, imagines futures."""
        return self.judge != "critic" or self.infeasible == "planner"

    @model_validator(mode="after")
    def _check_together(self) -> "ShieldSection":
        unused = {"horizon": self.horizon, "conf": None if self.threshold == "calibrated" else self.conf}
        for key, value in unused.items():
            if not self.looks_ahead and value is not None:
                raise ValueError(
                    f"{key}={value} is nothing that mode='critic' asks: use mode='verify', or leave {key} out"
                )
        if self.criterion is not None and self.judge in ("critic", "amortised"):
            raise ValueError(
                f"criterion={self.criterion!r} is about imagined futures, and mode={self.judge!r} imagines none when "
                "it judges: use mode='verify' or 'search', or leave criterion out"
            )
        if self.conf == 1.0 and (self.threshold == "calibrated" or self.judge == "amortised"):
            raise ValueError(
                "conf=1.0 is a certainty that neither a measurement (threshold='calibrated') nor a network "
                "(mode='amortised') has: choose conf below 1, or mode='verify' with a threshold"
            )
        return self

    @property
    def callbacks(self) -> list[Entry]:
        """What trains the models that it needs."""
        names = ["ViabilityCallback"]
        if self.looks_ahead or self.caution:
            names.append("InternalModelCallback")
        if self.looks_ahead:
            names.append("WorldModelCallback")
        if self.judge == "amortised":
            names.append("SafetyNetworkCallback")
        if self.threshold == "calibrated":
            names.append("CalibrationCallback")
        asked = {"residual": self.residual, "pieces": self.pieces}
        critic = {key: value for key, value in asked.items() if value}
        return [(name, critic if name == "ViabilityCallback" else {}) for name in names]

    def layer(self, algo: str, rollouts: int | None) -> Entry:
        """
        :param algo: rl-zoo3's name of the algorithm
        :param rollouts: of the models, for each decision
        :return: the shield
        """
        return "ActionShield", {
            "threshold": self.threshold,
            "correction": self.correction or ("mask" if algo == "ppo_mask" else "project"),
            # Of Box actions alone, and refused by the layer where there are none.
            "projection": None if self.projection == "cem" else self.projection,
            "inset": self.inset or None,
            # Off-policy the penalty is paid in the replay buffer, by the proposed action alone.
            "intervention_penalty": self.intervention_penalty if algo in ON_POLICY else None,
            "min_updates": self.min_updates,
            "fallback": listed(self.fallback),
            "mode": self.judge,
            "conf": self.conf,
            "horizon": self.horizon,
            "criterion": self.criterion,
            "rollouts": rollouts,
            "infeasible": self.infeasible,
            "caution": self.caution,
            "guards": self.guards and list(self.guards),
        }


class PlannerSection(Section):
    """
    Parameters of :class:`~persist_sb3.wrappers.ReachAvoidPlanner`; those that are not given are its own.

    :param target: constraints that hold where it is to get. Default: it stays in the middle of the limits
    :param horizon: steps planned
    :param conf: share of imagined futures that must stay inside the limits
    :param threshold: least value at the end, in scaled margins
    :param chance: whether chance is drawn in imagination
    :param width: courses that the beam keeps (enumerable actions)
    :param samples: courses drawn in each round (Box actions)
    :param rounds: of drawing (Box actions)
    :param min_updates: gradient steps of a model before it is trusted
    """

    target: tuple[str, ...] | None = None
    horizon: Count | None = None
    conf: Share | None = None
    threshold: float | None = None
    chance: bool | None = None
    width: Count | None = None
    samples: Count | None = None
    rounds: Count | None = None
    min_updates: Annotated[int, Field(ge=0)] | None = None

    @property
    def callbacks(self) -> list[Entry]:
        """What trains the models that it imagines with, and values the end of a course by."""
        return [(name, {}) for name in ("ViabilityCallback", "InternalModelCallback", "WorldModelCallback")]

    def layer(self, rollouts: int | None) -> Entry:
        """
        :param rollouts: futures of each course
        :return: the planner
        """
        parameters: dict[str, Any] = {**self.model_dump(), "rollouts": rollouts}
        return "ReachAvoidPlanner", {**parameters, "target": self.target and list(self.target)}


class ViabilitySection(Section):
    """
    :param constraints: what "alive" means, see :mod:`persist_sb3.viability`
    :param scale: what each constraint's margin is divided by. Default: its margin at the setpoint
    :param shield: filter the actions. Default: no shield
    :param planner: plan the actions, in the place of the policy and of a shield. Default: the policy acts
    :param counterfactual_share: part of each batch, of the critic of shield or planner and of an off-policy algorithm's
        replay buffer, that is told as it would have been with other internal variables, see
        :class:`~persist_sb3.counterfactuals.Counterfactuals`
    """

    constraints: tuple[str, ...] = ("energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6")
    scale: tuple[Positive, ...] | None = None
    shield: ShieldSection | None = None
    planner: PlannerSection | None = None
    counterfactual_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    @model_validator(mode="after")
    def _check_together(self) -> "ViabilitySection":
        if self.shield is not None and self.planner is not None:
            raise ValueError(
                "a planner stands in the place of a shield: leave one of the two out. shield: {infeasible: planner} "
                "plans where no action passes"
            )
        return self

    @property
    def overrules(self) -> bool:
        """Whether other actions are executed than the policy proposes."""
        return self.shield is not None or self.planner is not None

    @property
    def looks_ahead(self) -> bool:
        """Whether futures are imagined."""
        return self.planner is not None or (self.shield is not None and self.shield.looks_ahead)

    @property
    def callbacks(self) -> list[Entry]:
        """What trains the models of the shield or the planner."""
        judge = self.shield or self.planner
        told = {"ViabilityCallback": {"counterfactual_share": self.counterfactual_share or None}}
        entries = [] if judge is None else judge.callbacks
        return [given((name, {**parameters, **told.get(name, {})})) for name, parameters in entries]
