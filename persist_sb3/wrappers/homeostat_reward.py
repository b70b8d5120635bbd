"""A reward for internal variables that are where they should be."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch
from persist_sb3.homeostat import Homeostat
from persist_sb3.infos import Infos
from persist_sb3.wrappers.adapters import LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.layer import Layer, Lookup, Step


class HomeostatRewardLayer(Layer):
    """
    Adds ``weight * r_homeo`` to the reward, ``r_homeo`` as :class:`~persist_sb3.homeostat.Homeostat` has it, and
    reports it as ``info["reward_terms"]["homeo"]``. Death is a violated constraint (``info["cost"]``), whatever the
    environment's ``terminated`` says.

    :param mu: setpoints, one a variable. Default: those of the constraints below
    :param w: weight of each variable's deviation. Default: 1 each
    :param form: ``"deviation"`` or ``"drive_reduction"``
    :param n: exponent inside the drive
    :param m: root of the drive
    :param alive_bonus: added at every step that violates no constraint; ``"auto"``: the least bonus with which life
        inside the constraints cannot lose (:meth:`~persist_sb3.homeostat.Homeostat.safe_alive_bonus`)
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

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        viability = lookup("viability")
        mu = viability.mu if self._mu is None else self._mu
        if mu is None:
            raise RuntimeError("HomeostatReward needs setpoints, and the constraints below have none: give mu=[...]")
        names = viability.dims
        w = [1.0] * len(names) if self._w is None else self._w
        for key, values in (("mu", mu), ("w", w)):
            if len(values) != len(names):
                raise RuntimeError(f"{key} has {len(values)} entries for {len(names)} internal variables {list(names)}")
        bonus = self._alive_bonus
        if bonus == "auto":
            bonus = Homeostat(mu, w, **self._form).safe_alive_bonus(viability)
            if not np.isfinite(bonus):
                raise RuntimeError(
                    f"alive_bonus='auto' needs limits on both sides of every variable that has a weight, and "
                    f"{viability.box()} leaves one open: give InternalState low=[...] and high=[...], or a number here"
                )
        self.homeostat = Homeostat(mu, w, alive_bonus=bonus, **self._form)
        self.homeostat.check(viability)
        self._x = np.zeros((num_envs, len(names)))

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        self._x[slots] = infos.column(("internal",), slots)

    def after(self, step: Step) -> NDArray[np.float64]:
        infos, everyone = step.infos, self.everyone
        x = infos.column(("internal",), everyone)
        dead = infos.column(("cost",), everyone) > 0.0
        homeo = self.weight * self.homeostat.reward(self._x, x, dead) * step.live
        self._x = x
        infos.publish("reward_terms", everyone, homeo, "homeo")
        return step.reward + homeo


class HomeostatReward(LayerWrapper):
    """:class:`HomeostatRewardLayer` around a ``gymnasium.Env``."""

    layer_type = HomeostatRewardLayer


class VecHomeostatReward(VecLayerWrapper):
    """:class:`HomeostatRewardLayer` around SB3's ``VecEnv``."""

    layer_type = HomeostatRewardLayer


class VectorHomeostatReward(VectorLayerWrapper):
    """:class:`HomeostatRewardLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = HomeostatRewardLayer
