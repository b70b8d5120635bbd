"""How a weight changes over training."""

import math

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule


def make_schedule(value: float | str | Schedule) -> FloatSchedule:
    """
    Read a schedule as rl-zoo3 writes learning rates.

    :param value: a constant; ``"lin_0.5"``, which falls linearly from 0.5 to 0; or a function of the remaining
        progress, which goes from 1 to 0 (SB3's ``LinearSchedule``, for instance)
    :return: the value by remaining progress
    :raises ValueError: if a string is no schedule, or a number is negative or not finite
    """
    if not isinstance(value, str | float | int):
        return FloatSchedule(value)
    problem = f"schedule {value!r} must be a finite number, at least 0, or 'lin_' and such a number: 'lin_0.5'"
    kind, _, number = value.rpartition("_") if isinstance(value, str) else (None, "", value)
    try:
        start = float(number)
    except ValueError as error:
        raise ValueError(problem) from error
    if kind not in (None, "lin") or not 0.0 <= start < math.inf:
        raise ValueError(problem)
    return FloatSchedule(LinearSchedule(start, 0.0, 1.0) if kind == "lin" else start)
