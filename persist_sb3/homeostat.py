"""The homeostatic reward: what an agent gains and loses by where its internal variables are."""

import difflib
import math
import warnings
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from persist_sb3.viability import ViabilitySet

Form = Literal["deviation", "drive_reduction"]
Vector = NDArray[np.float64]


class PaidToDieWarning(UserWarning):
    """A homeostatic reward under which an agent can gain by dying."""


class Homeostat:
    """
    Rewards internal variables for being, or coming, near their setpoint.

    ``form="deviation"``: ``-sum_j w_j (x'_j - mu_j)^2``, at most 0.
    ``form="drive_reduction"``: ``D(x) - D(x')`` with the drive ``D(x) = (sum_j w_j |x_j - mu_j|^n)^(1/m)``; Keramati
    and Gutkin, "Homeostatic reinforcement learning for integrating reward collection and physiological stability",
    eLife 2014, doi:10.7554/eLife.04811.

    **The trap.** Where death ends the episode, and with it every further loss, an agent that can only lose by living
    learns to die. A deviation is a loss at every step. A drive reduction seems harmless but telescopes: discounted by
    ``gamma``, the rewards of an endless life sum to ``D(x_0) - (1 - gamma) * sum_{t >= 1} gamma^(t-1) D(x_t)``, so a
    start at the setpoint leaves nothing to win, and each step costs ``(1 - gamma) D``. ``alive_bonus`` repays that loss
    and ``death_penalty`` outweighs it; :meth:`safe_alive_bonus` says how much is enough and :meth:`check` warns.

    :param mu: the setpoint, ``(d,)``
    :param w: weight of each variable, ``(d,)``, at least 0 and not all 0
    :param form: which of the two
    :param n: exponent of each distance in the drive, positive
    :param m: root of the drive, positive; ``n > m > 1`` makes the same help worth more when the need is greater
    :param alive_bonus: added at a step that the agent survives
    :param death_penalty: subtracted at the step at which it dies, at least 0
    :raises ValueError: if a parameter is out of its range, or ``mu`` and ``w`` differ in length
    """

    def __init__(
        self,
        mu: Sequence[float] | Vector,
        w: Sequence[float] | Vector,
        *,
        form: Form = "deviation",
        n: float = 2.0,
        m: float = 2.0,
        alive_bonus: float = 0.0,
        death_penalty: float = 0.0,
    ) -> None:
        if form not in get_args(Form):
            nearest = difflib.get_close_matches(str(form), get_args(Form), n=1)
            hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
            raise ValueError(f"form={form!r} is unknown{hint}; there are {', '.join(get_args(Form))}")
        for name, value in (("n", n), ("m", m)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be positive and finite")
        if not math.isfinite(alive_bonus):
            raise ValueError(f"alive_bonus={alive_bonus} must be finite")
        if not 0 <= death_penalty < math.inf:
            raise ValueError(f"death_penalty={death_penalty} must be finite and at least 0: it is subtracted")
        self.mu = np.array(mu, dtype=np.float64)
        self.w = np.array(w, dtype=np.float64)
        if self.mu.ndim != 1 or self.mu.shape != self.w.shape:
            raise ValueError(
                f"mu and w need one number a variable each, but have shapes {self.mu.shape} and {self.w.shape}"
            )
        if not np.isfinite(self.mu).all():
            raise ValueError(f"mu={self.mu.tolist()} must be finite")
        if not (np.isfinite(self.w).all() and (self.w >= 0).all() and self.w.any()):
            raise ValueError(f"w={self.w.tolist()} must be finite, at least 0, and not all 0")
        self.form: Form = form
        self.n = n
        self.m = m
        self.alive_bonus = alive_bonus
        self.death_penalty = death_penalty
        # What a step adds that is survived, and one that is not.
        self._ends = np.array([alive_bonus, -death_penalty])

    def deviation(self, x: Vector, mu: Vector | None = None, w: Vector | None = None) -> Vector:
        """
        :param x: internal states, ``(n, d)``
        :param mu: setpoints of their own, ``(n, d)``. Default: the homeostat's
        :param w: weights of their own, ``(n, d)``. Default: the homeostat's
        :return: ``sum_j w_j (x_j - mu_j)^2``, ``(n,)``
        :raises ValueError: if the last axis of ``x`` is not ``d`` long
        """
        distance = self._distance(x, mu)
        deviation: Vector = np.vecdot(distance * distance, self.w if w is None else w)
        return deviation

    def drive(self, x: Vector, mu: Vector | None = None, w: Vector | None = None) -> Vector:
        """
        :param x: internal states, ``(n, d)``
        :param mu: setpoints of their own, ``(n, d)``. Default: the homeostat's
        :param w: weights of their own, ``(n, d)``. Default: the homeostat's
        :return: ``(sum_j w_j |x_j - mu_j|^n)^(1/m)``, ``(n,)``
        :raises ValueError: if the last axis of ``x`` is not ``d`` long
        """
        return self._drive(self._distance(x, mu), w)

    def _distance(self, x: Vector, mu: Vector | None = None) -> Vector:
        if x.shape[-1] != len(self.mu):
            raise ValueError(f"x has shape {x.shape}; its last axis must hold {len(self.mu)} internal variables")
        return x - (self.mu if mu is None else mu)

    def _drive(self, distance: Vector, w: Vector | None = None) -> Vector:
        powers = distance * distance if self.n == 2 else np.abs(distance) ** self.n
        need: Vector = np.vecdot(powers, self.w if w is None else w)
        return np.sqrt(need) if self.m == 2 else need ** (1 / self.m)

    def reward(
        self, x: Vector, x_next: Vector, dead: NDArray[np.bool_], mu: Vector | None = None, w: Vector | None = None
    ) -> Vector:
        """
        :param x: internal states before the step, ``(n, d)``
        :param x_next: after it, ``(n, d)``
        :param dead: whether the step left the viability set, ``(n,)``
        :param mu: setpoints of their own, ``(n, d)``. Default: the homeostat's
        :param w: weights of their own, ``(n, d)``. Default: the homeostat's
        :return: the form's term, plus ``alive_bonus`` or minus ``death_penalty``, ``(n,)``
        :raises ValueError: if the last axis of an ``x`` is not ``d`` long
        """
        if self.form == "deviation":
            term = -self.deviation(x_next, mu, w)
        else:
            term = self.drive(x, mu, w) - self.drive(x_next, mu, w)
        term += self._ends.take(dead)
        return term

    def safe_alive_bonus(
        self, viability: ViabilitySet, gamma: float = 0.99, setpoints: tuple[Vector, Vector] | None = None
    ) -> float:
        """
        The smallest ``alive_bonus`` at which no life inside the viability set has a loss to escape from.

        For ``deviation`` it is the greatest deviation there, so that no single step costs anything. For
        ``drive_reduction`` it is ``(1 - gamma)`` times the greatest drive: a step toward the edge still costs, but
        every life from the setpoint sums to at least 0, as the class explains.

        Both are greatest in a corner of the set's box (:meth:`ViabilitySet.box`). That is exact if each constraint
        limits one variable; one on several variables is left out, and the answer is then on the safe side.

        :param viability: the set; widening it can raise the answer
        :param gamma: the agent's discount factor, at least 0 and below 1
        :param setpoints: least and greatest setpoint that there will be, ``(d,)`` each, where they vary
        :return: the bonus; infinite if the set does not bound a variable that has weight
        :raises ValueError: if the set has another number of variables, or ``gamma`` is out of its range
        """
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma={gamma} must be at least 0 and below 1")
        if len(viability.dims) != len(self.mu):
            raise ValueError(f"the homeostat has {len(self.mu)} variables, the viability set {viability.dims}")
        low, high = viability.box()
        distances = [np.abs(end - mu) for end in (low, high) for mu in (self.mu, *(setpoints or ()))]
        farthest: Vector = np.max(distances, axis=0)
        # A variable without weight may be unbounded.
        farthest[self.w == 0] = 0.0
        if self.form == "deviation":
            return float(np.vecdot(farthest * farthest, self.w))
        return (1 - gamma) * float(self._drive(farthest))

    def worst_reward(self, viability: ViabilitySet, gamma: float = 0.99) -> float:
        """
        The least reward a step that a life inside the viability set can bring: of a single step for ``deviation``, on
        (discounted) average from a start at the setpoint for ``drive_reduction``.

        :param viability: the set
        :param gamma: the agent's discount factor, at least 0 and below 1
        :return: ``alive_bonus - safe_alive_bonus(viability, gamma)``
        :raises ValueError: as :meth:`safe_alive_bonus`
        """
        return self.alive_bonus - self.safe_alive_bonus(viability, gamma)

    def check(self, viability: ViabilitySet, gamma: float = 0.99) -> None:
        """
        Warn if the reward can pay the agent to die: if the worst life inside the viability set, lived for ever, sums to
        less than dying at once, ``worst_reward / (1 - gamma) < -death_penalty``.

        :param viability: the set
        :param gamma: the agent's discount factor, at least 0 and below 1
        :raises ValueError: as :meth:`safe_alive_bonus`
        """
        safe = self.safe_alive_bonus(viability, gamma)
        worst = self.worst_reward(viability, gamma)
        endless = -worst / (1 - gamma)
        if endless <= self.death_penalty:
            return
        if math.isinf(worst):
            low, high = viability.box()
            unbounded = [
                name
                for name, finite, weight in zip(viability.dims, np.isfinite(high - low), self.w, strict=True)
                if weight > 0 and not finite
            ]
            loss = f"without limit, because nothing bounds {', '.join(unbounded)}"
            remedy = "Give these a constraint, or low and high, or weight 0"
        else:
            loss = f"{-worst:.4g} a step, {endless:.4g} in all at gamma={gamma:g}"
            remedy = f"Use alive_bonus >= {_rounded_up(safe):g}, or death_penalty >= {_rounded_up(endless):g}"
        warnings.warn(
            f"the {self.form} reward (alive_bonus={self.alive_bonus:g}, death_penalty={self.death_penalty:g}) can pay "
            f"the agent to die: life at the edge of the viability set loses {loss}; dying ends that "
            f"at the price of {self.death_penalty:g}. {remedy}.",
            PaidToDieWarning,
            stacklevel=2,
        )


class Pay(NamedTuple):
    """
    What a layer pays for internal variables.

    :param homeostat: by which reward
    :param weight: times this
    """

    homeostat: Homeostat
    weight: float


def _rounded_up(value: float) -> float:
    # Up, so that following the advice is enough.
    return float(Context(prec=4, rounding=ROUND_CEILING).create_decimal_from_float(value))
