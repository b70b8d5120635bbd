"""The weight of a cost that comes to what is asked for: a Lagrange multiplier, led by PID control."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

Scales = Literal["cost", "homeostat"]
SCALES: tuple[Scales, ...] = get_args(Scales)


class PIDMultiplier:
    """
    A multiplier for the constraint ``cost <= target``, by PID control (Stooke, Achiam & Abbeel, "Responsive safety in
    reinforcement learning by PID Lagrangian methods", ICML 2020, algorithm 2). With the excess ``e = cost - target``:

    ``I <- clip(I + ki e, 0, maximum)``, ``lambda = clip(kp E + I + kd max(0, C - C'), 0, maximum)``

    where ``E`` and ``C`` are running means of ``e`` and ``cost`` and ``C'`` is the ``C`` of the last time. The integral
    alone is dual ascent, ``ki`` its learning rate: it remembers, and answers late, so that cost and multiplier swing
    about the solution. The proportional and the derivative term damp that, without moving the solution.

    :param target: of the cost, finite
    :param ki: multiplier per unit of excess and update, positive
    :param kp: multiplier per unit of excess, at least 0
    :param kd: multiplier per unit of increase of the cost, at least 0
    :param smoothing: share of the past in the running means, in ``[0, 1)``
    :param initial: the multiplier before the first update, in ``[0, maximum]``
    :param maximum: of the multiplier, positive
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        target: float,
        ki: float = 0.1,
        kp: float = 0.1,
        kd: float = 0.0,
        smoothing: float = 0.5,
        initial: float = 0.0,
        maximum: float = 100.0,
    ) -> None:
        for name, value, holds, demand in (
            ("target", target, math.isfinite(target), "finite"),
            ("ki", ki, 0.0 < ki < math.inf, "positive and finite: without it nothing is remembered"),
            ("kp", kp, 0.0 <= kp < math.inf, "finite and at least 0"),
            ("kd", kd, 0.0 <= kd < math.inf, "finite and at least 0"),
            ("smoothing", smoothing, 0.0 <= smoothing < 1.0, "in [0, 1)"),
            ("maximum", maximum, 0.0 < maximum < math.inf, "positive and finite"),
            ("initial", initial, 0.0 <= initial <= maximum, f"in [0, maximum={maximum}]"),
        ):
            if not holds:
                raise ValueError(f"{name}={value} must be {demand}")
        self.target = target
        self.ki = ki
        self.kp = kp
        self.kd = kd
        self.smoothing = smoothing
        self.maximum = maximum
        #: The multiplier.
        self.value = initial
        self._integral = initial
        self._excess: float | None = None
        self._cost: float | None = None

    def update(self, cost: float) -> float:
        """
        :param cost: as measured since the last update
        :return: the multiplier from now on
        """
        excess, last = cost - self.target, self._cost
        self._integral = min(max(self._integral + self.ki * excess, 0.0), self.maximum)
        self._excess = excess if self._excess is None else self._mean(self._excess, excess)
        self._cost = cost if last is None else self._mean(last, cost)
        rise = 0.0 if last is None else max(self._cost - last, 0.0)
        self.value = min(max(self.kp * self._excess + self._integral + self.kd * rise, 0.0), self.maximum)
        return self.value

    def _mean(self, past: float, new: float) -> float:
        return self.smoothing * past + (1.0 - self.smoothing) * new

    def state_dict(self) -> dict[str, Any]:
        """
        :return: multiplier, integral and running means
        """
        return {"value": self.value, "integral": self._integral, "excess": self._excess, "cost": self._cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        """
        self.value, self._integral = state["value"], state["integral"]
        self._excess, self._cost = state["excess"], state["cost"]


class Multiplier(torch.nn.Module):
    """
    The multiplier in force, in shared memory: the layer that it scales reads it at every step.

    :param scales: which layer that is: ``"cost"`` (``CostPenalty``) or ``"homeostat"`` (``HomeostatReward``)
    """

    value: torch.Tensor

    def __init__(self, scales: Scales) -> None:
        super().__init__()
        self.scales: Scales = scales
        self.register_buffer("value", torch.zeros((), dtype=torch.float64))

    @property
    def term(self) -> str:
        """What it is the weight of, in ``info["reward_terms"]``."""
        return "cost" if self.scales == "cost" else "homeo"

    def get_extra_state(self) -> dict[str, Any]:
        """
        :return: which layer it scales
        """
        return {"scales": self.scales}

    def set_extra_state(self, state: Any) -> None:
        """
        :param state: what :meth:`get_extra_state` returned
        :raises ValueError: if it scaled another layer
        """
        if state["scales"] != self.scales:
            raise ValueError(f"it was saved with scales={state['scales']!r}, and this has {self.scales!r}")
