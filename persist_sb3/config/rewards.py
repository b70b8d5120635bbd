"""What is added to the task reward."""

from typing import Literal, NamedTuple

from pydantic import model_validator

from persist_sb3.config.section import Entry, NonNegative, Positive, Section
from persist_sb3.lagrange import PIDMultiplier, Scales
from persist_sb3.schedules import make_schedule


class Intrinsic(NamedTuple):
    """
    How an intrinsic reward is paid.

    :param layer: that pays it
    :param callbacks: that train what it is paid by; the last one knows its schedule
    """

    layer: str
    callbacks: tuple[str, ...]


INTRINSIC = {
    "rnd": Intrinsic("RNDBonus", ("RNDCallback",)),
    "surprise": Intrinsic("SurpriseBonus", ("WorldModelCallback",)),
    "empowerment": Intrinsic("EmpowermentBonus", ("WorldModelCallback", "EmpowermentCallback")),
    "smirl": Intrinsic("SMiRLBonus", ()),
}


class RewardsSection(Section):
    """
    :param lambda_homeo: weight of the homeostatic reward
    :param lambda_intr: weight of the intrinsic reward
    :param intrinsic: which one
    :param schedule: factor on ``lambda_intr`` over training: a number, or ``"lin_1"`` (linearly from 1 to 0)
    :param form: of the homeostatic reward, see :class:`~persist_sb3.homeostat.Homeostat`
    :param n: exponent inside the drive
    :param m: root of the drive
    :param alive_bonus: added at every step alive. ``"auto"``: the least one with which no step alive costs the agent,
        so that dying early never pays
    :param death_penalty: subtracted at a step that violates a constraint
    :param cost_target: violating steps an episode that are allowed:
        :class:`~persist_sb3.callbacks.LagrangeCallback` finds the weight with which that holds. Default: nothing does
    :param cost_scales: the weight of what: ``"cost"``, a price of each violating step, or ``"homeostat"``, the
        homeostatic reward, whose weight begins at ``lambda_homeo``
    """

    lambda_homeo: NonNegative = 0.5
    lambda_intr: NonNegative = 0.0
    intrinsic: Literal["none", "rnd", "surprise", "empowerment", "smirl"] = "none"
    schedule: NonNegative | str = 1.0
    form: Literal["deviation", "drive_reduction"] = "deviation"
    n: Positive = 2.0
    m: Positive = 2.0
    alive_bonus: NonNegative | Literal["auto"] = "auto"
    death_penalty: NonNegative = 20.0
    cost_target: NonNegative | None = None
    cost_scales: Scales = "cost"

    @model_validator(mode="after")
    def _check_together(self) -> "RewardsSection":
        if (self.intrinsic == "none") != (self.lambda_intr == 0.0):
            raise ValueError(
                f"intrinsic={self.intrinsic!r} and lambda_intr={self.lambda_intr} contradict each other: name an "
                "intrinsic reward and give it a weight, or give neither"
            )
        make_schedule(self.schedule)
        if self.schedule != 1.0 and not self.learns_a_bonus:
            able = ", ".join(name for name, kind in INTRINSIC.items() if kind.callbacks)
            raise ValueError(
                f"schedule={self.schedule!r} is for an intrinsic reward that a callback trains ({able}), and "
                f"intrinsic={self.intrinsic!r}: leave schedule out"
            )
        if self.cost_scales == "homeostat":
            if self.cost_target is None or not self.lambda_homeo:
                raise ValueError(
                    "cost_scales='homeostat' lets the weight of the homeostatic reward follow from cost_target: give "
                    f"cost_target, not {self.cost_target}, and a lambda_homeo above 0, not {self.lambda_homeo}"
                )
            PIDMultiplier(self.cost_target, initial=self.lambda_homeo)
        return self

    @property
    def learns_a_bonus(self) -> bool:
        """Whether the intrinsic reward is paid by what goes on learning."""
        return self.intrinsic != "none" and bool(INTRINSIC[self.intrinsic].callbacks)

    @property
    def outer_layers(self) -> list[Entry]:
        """What pays beside the homeostat."""
        layers: list[Entry] = []
        if self.cost_target is not None and self.cost_scales == "cost":
            layers.append(("CostPenalty", {}))
        if self.intrinsic != "none":
            layers.append((INTRINSIC[self.intrinsic].layer, {"weight": self.lambda_intr}))
        return layers

    @property
    def weighing_callbacks(self) -> list[Entry]:
        """What finds weights."""
        if self.cost_target is None:
            return []
        homeostat = {"scales": "homeostat", "initial": self.lambda_homeo} if self.cost_scales == "homeostat" else {}
        return [("LagrangeCallback", {"target": self.cost_target, **homeostat})]

    @property
    def learning_callbacks(self) -> list[Entry]:
        """What trains the models of the intrinsic reward."""
        if not self.learns_a_bonus:
            return []
        *models, last = INTRINSIC[self.intrinsic].callbacks
        scheduled = {} if self.schedule == 1.0 else {"schedule": self.schedule}
        return [*((name, {}) for name in models), (last, scheduled)]
