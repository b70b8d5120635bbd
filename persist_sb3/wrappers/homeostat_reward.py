"""A reward for internal variables that are where they should be."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, with_rows
from persist_sb3.curriculum import StageInForce
from persist_sb3.homeostat import Homeostat, Pay
from persist_sb3.infos import Infos
from persist_sb3.lagrange import Multiplier
from persist_sb3.wrappers.adapters import LayerOwner, LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.layer import Layer, Lookup, Step, declared


class HomeostatRewardLayer(Layer):
    """
    Adds ``weight * r_homeo`` to the reward, ``r_homeo`` as :class:`~persist_sb3.homeostat.Homeostat` has it, and
    reports it as ``info["reward_terms"]["homeo"]``. Death is a violated constraint (``info["cost"]``), whatever the
    environment's ``terminated`` says.

    :param mu: setpoints, one a variable. Default: those that ``RandomSetpoint`` below draws, or else those of the
        constraints
    :param w: weight of each variable's deviation. Default: those that ``RandomSetpoint`` below draws, or else 1 each
    :param form: ``"deviation"`` or ``"drive_reduction"``
    :param n: exponent inside the drive
    :param m: root of the drive
    :param alive_bonus: added at every step that violates no constraint; ``"auto"``: the least bonus with which life
        inside the constraints in force cannot lose (:meth:`~persist_sb3.homeostat.Homeostat.safe_alive_bonus`)
    :param death_penalty: subtracted at a step that violates one
    :param weight: ``lambda_H``, at least 0
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        mu: Sequence[float] | None = None,
        w: Sequence[float] | None = None,
        form: Literal["deviation", "drive_reduction"] = "deviation",
        n: float = 2.0,
        m: float = 2.0,
        alive_bonus: float | Literal["auto"] = 0.0,
        death_penalty: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        if not (np.isfinite(weight) and weight >= 0.0):
            raise ValueError(f"weight={weight} must be a finite number, at least 0")
        self._mu, self._w = mu, w
        self._alive_bonus = alive_bonus
        self._form: dict[str, Any] = {"form": form, "n": n, "m": m, "death_penalty": death_penalty}
        self.weight = weight
        self._multiplier: Multiplier | None = None

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        if declared(lookup, "homeostat_pay", None) is not None:
            raise RuntimeError(
                "HomeostatReward lies around another one, and the agent would be paid twice: is the environment "
                "wrapped already?"
            )
        viability = lookup("viability")
        mu = viability.mu if self._mu is None else self._mu
        if mu is None:
            raise RuntimeError("HomeostatReward needs setpoints, and the constraints below have none: give mu=[...]")
        names = viability.dims
        drawn: tuple[NDArray[np.float64], NDArray[np.float64]] | None = declared(lookup, "weight_range", None)
        if drawn is not None and self._w is not None:
            raise RuntimeError(
                f"HomeostatReward(w={list(self._w)}) fixes the weights, and RandomSetpoint below draws them: give w to "
                "RandomSetpoint instead"
            )
        # Those drawn are at most these: what is enough for them is enough for all.
        w = drawn[1] if drawn is not None else [1.0] * len(names) if self._w is None else self._w
        for key, values in (("mu", mu), ("w", w)):
            if len(values) != len(names):
                raise RuntimeError(f"{key} has {len(values)} entries for {len(names)} internal variables {list(names)}")
        self._range: tuple[NDArray[np.float64], NDArray[np.float64]] | None = declared(lookup, "setpoint_range", None)
        if self._range is not None and self._mu is not None:
            raise RuntimeError(
                f"HomeostatReward(mu={list(self._mu)}) fixes the setpoints, and RandomSetpoint below draws them: leave "
                "mu out"
            )
        self._viability = viability
        self._setpoint, self._weights = mu, w
        self._mus = np.tile(np.asarray(mu, dtype=np.float64), (num_envs, 1))
        self._ws = None if drawn is None else np.tile(drawn[1], (num_envs, 1))
        self._adjust(1.0)
        self.homeostat.check(viability)
        self._x = np.zeros((num_envs, len(names)))
        self._nothing = np.zeros(num_envs)

    def _adjust(self, tightness: float) -> None:
        """
        :param tightness: of the constraints that the reward is to be fit for
        """
        bonus = self._alive_bonus
        if bonus == "auto":
            viability = self._viability if tightness == 1.0 else self._viability.tighten(tightness)
            bonus = Homeostat(self._setpoint, self._weights, **self._form).safe_alive_bonus(
                viability, setpoints=self._range
            )
            if not np.isfinite(bonus):
                floor, ceiling = viability.box()
                open_ended = np.flatnonzero(~np.isfinite(ceiling - floor) & (np.asarray(self._weights) > 0.0))
                ranges = ", ".join(f"{viability.dims[j]} in [{floor[j]:g}, {ceiling[j]:g}]" for j in open_ended)
                raise RuntimeError(
                    f"alive_bonus='auto' needs limits on both sides of every variable that has a weight, and one is "
                    f"open: {ranges}. Give InternalState low=[...] and high=[...] (in a configuration "
                    "internal_state.low and high), or a number as alive_bonus"
                )
        self._tightness = tightness
        self.homeostat = Homeostat(self._setpoint, self._weights, alive_bonus=bonus, **self._form)

    def follow(self, curriculum: StageInForce | None) -> None:
        for demands in () if curriculum is None else curriculum.plan:
            self._check_gain(demands.tightness)
        super().follow(curriculum)

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        multiplier: Multiplier | None = bundle.get("lagrange")
        self._multiplier = multiplier if multiplier is not None and multiplier.scales == "homeostat" else None
        if self._multiplier is not None:
            if self.curriculum is not None and self.curriculum.leads_homeostat:
                raise RuntimeError(
                    "LagrangeCallback(scales='homeostat') finds the weight of HomeostatReward, and a curriculum sets "
                    "it: leave homeo_factor out of the stages"
                )
            self._check_gain(1.0)

    def _check_gain(self, tightness: float) -> None:
        """
        :param tightness: of the constraints in force
        :raises RuntimeError: if a step inside them can cost the agent something: the more the weight of that, the more
            it would gain by dying
        """
        if self._alive_bonus == "auto":
            return
        viability = self._viability.tighten(tightness)
        enough = self.homeostat.safe_alive_bonus(viability, setpoints=self._range)
        if self.homeostat.alive_bonus < enough:
            raise RuntimeError(
                f"alive_bonus={self._alive_bonus} lets a step inside the constraints (tightness {tightness:g}) cost "
                f"{enough - self.homeostat.alive_bonus:.4g}, and with a weight that rises the agent would be paid to "
                f"die: use alive_bonus='auto', or at least {enough:.4g}"
            )

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        self._x = with_rows(self._x, slots, infos.column(("internal",), slots))
        if self._range is not None:
            self._mus[slots] = infos.column(("setpoint",), slots)
        if self._ws is not None:
            self._ws[slots] = infos.column(("setpoint_weights",), slots)

    def after(self, step: Step) -> NDArray[np.float64]:
        infos, everyone, demands = step.infos, self.everyone, self.demands
        if demands.tightness != self._tightness:
            self._adjust(demands.tightness)
        x = infos.column(("internal",), everyone)
        dead = infos.column(("cost",), everyone) > self._nothing
        homeo = step.where_live(self.homeostat.reward(self._x, x, dead, self._mus, self._ws))
        weight, factor = self.weight, demands.homeo_factor
        if self._multiplier is not None:
            weight, factor = 1.0, float(self._multiplier.value)
        if weight != 1.0:
            homeo *= weight
        if self._multiplier is not None or self.curriculum is not None:
            # For replay buffers, which pay it by the factor of a later day.
            infos.publish("whole_terms", everyone, homeo, "homeo")
        if factor != 1.0:
            homeo = factor * homeo
        self._x = x
        infos.publish("reward_terms", everyone, homeo, "homeo")
        return step.reward + homeo


class _Declarations(LayerOwner):
    """What it says about itself, for the layers above."""

    layer: HomeostatRewardLayer

    @property
    def homeostat_pay(self) -> Pay:
        """What it pays now."""
        return Pay(self.layer.homeostat, self.layer.weight)


class HomeostatReward(_Declarations, LayerWrapper):
    """:class:`HomeostatRewardLayer` around a ``gymnasium.Env``."""

    layer_type = HomeostatRewardLayer


class VecHomeostatReward(_Declarations, VecLayerWrapper):
    """:class:`HomeostatRewardLayer` around SB3's ``VecEnv``."""

    layer_type = HomeostatRewardLayer


class VectorHomeostatReward(_Declarations, VectorLayerWrapper):
    """:class:`HomeostatRewardLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = HomeostatRewardLayer
