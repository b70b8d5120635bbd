"""How a weight, or how often something is done, changes over training."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from numbers import Integral

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

#: Steps between two occasions: always so many, or by the time step from which they are so many.
Period = int | Mapping[int, int]


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


def make_period(value: Period, name: str) -> Callable[[int], int]:
    """
    :param value: steps between two occasions, at least 1: always as many, or, by the time step from which they hold,
        several: ``{0: 1, 25_000: 4}``
    :param name: of the parameter, for messages
    :return: the value by time step
    :raises ValueError: if a value is below 1, or they do not begin with time step 0
    """
    periods = dict(value) if isinstance(value, Mapping) else {0: value}
    whole = all(isinstance(number, Integral) for number in (*periods, *periods.values()))
    if not whole or not periods or min(periods) != 0 or min(periods.values()) < 1:
        raise ValueError(
            f"{name}={value!r} must be at least 1, or whole numbers that are, by the time step from which they hold, "
            "the first of which is 0: {0: 1, 25_000: 4}"
        )
    begins = sorted(periods)
    return lambda timestep: periods[begins[bisect_right(begins, timestep) - 1]]
