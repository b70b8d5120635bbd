"""What turns the score of an intrinsic reward into a bonus."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import Schedule

from persist_sb3.intrinsic.scaling import ForwardScale
from persist_sb3.schedules import make_schedule


class BonusFactor:
    """
    What ``lambda_I``, a layer's ``weight``, is multiplied with: ``schedule * factor``. Callbacks that own one ask for
    it between rollouts only, so that one rollout's advantages are in one unit.

    :param schedule: over training, see :func:`~persist_sb3.schedules.make_schedule`
    :raises ValueError: if the schedule is none
    """

    def __init__(self, schedule: float | str | Schedule = 1.0) -> None:
        self.schedule = make_schedule(schedule)
        #: On top of the schedule.
        self.factor = 1.0

    def set_factor(self, factor: float) -> None:
        """
        Scale ``lambda_I`` from the next rollout on, on top of the schedule. It is saved with the model.

        :param factor: at least 0
        :raises ValueError: if it is negative or not finite
        """
        if not 0.0 <= factor < np.inf:
            raise ValueError(f"factor={factor} must be at least 0 and finite")
        self.factor = float(factor)

    def at(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: 1 at the beginning of training, 0 at its end
        :return: ``schedule * factor``
        """
        return self.schedule(progress_remaining) * self.factor

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the factor
        """
        return {"factor": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        """
        self.factor = state["factor"]


class BonusUnit(BonusFactor):
    """
    The number that a score is multiplied with to be a bonus of weight 1: ``schedule * factor / std``, where ``std`` is
    the running deviation of the score's discounted sum (:class:`~persist_sb3.intrinsic.ForwardScale`). With the layer's
    ``weight`` it makes up ``lambda_I``.

    :param schedule: over training, see :func:`~persist_sb3.schedules.make_schedule`
    :param gamma: discount factor of the sum, in ``[0, 1)``
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(self, schedule: float | str | Schedule = 1.0, gamma: float = 0.99) -> None:
        super().__init__(schedule)
        self.gamma = gamma
        self.forget()

    def forget(self) -> None:
        """Begin to measure anew, with the same schedule and factor: another training is about to begin."""
        self._scale = ForwardScale(self.gamma)
        # Taken in all at once: a few calls a rollout, and not a step.
        self._pending: list[NDArray[np.float64] | list[float]] = []
        self._recent = (0, 0.0)

    def measure(self, scores: NDArray[np.float64] | list[float]) -> None:
        """
        :param scores: of one step, ``(n,)``
        """
        self._pending.append(scores)

    @property
    def scale(self) -> ForwardScale:
        """Of all scores so far."""
        if self._pending:
            scores = np.array(self._pending, dtype=np.float64)
            self._pending.clear()
            self._scale.extend(scores)
            self._recent = self._recent[0] + scores.size, self._recent[1] + float(scores.sum())
        return self._scale

    def take_mean(self) -> float | None:
        """
        :return: mean of the scores measured since the last time, None if there are none
        """
        _ = self.scale
        (count, total), self._recent = self._recent, (0, 0.0)
        return total / count if count else None

    def restart(self, num_envs: int) -> None:
        """
        :param num_envs: how many environments follow; if they are others, their sums begin at nothing
        """
        if self.scale.sums is not None and len(self.scale.sums) != num_envs:
            self.scale.restart()

    def state_dict(self) -> dict[str, Any]:
        """
        :return: what was measured, and the factor
        """
        return {**super().state_dict(), "scale": self.scale.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        """
        self._pending.clear()
        self._scale.load_state_dict(state["scale"])
        super().load_state_dict(state)
