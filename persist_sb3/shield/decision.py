"""What a shield finds out about actions, and what it does about them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Where nothing was foreseen: no constraint, no step.
NONE = -1


@dataclass(slots=True)
class Verdict:
    """
    What is foreseen if these actions are taken, a row each.

    :param safe: whether the action passes, ``(r,)`` bool
    :param score: greater is safer; compares actions of one state, ``(r,)``
    :param p_safe: estimated probability of staying inside the limits, NaN where nobody estimated it, ``(r,)``
    :param constraint: index of the constraint that is in most danger, ``(r,)`` int
    :param margin: how far inside it the agent is foreseen to stay at least, scaled, ``(r,)``
    :param step: after how many steps it is foreseen broken, ``(r,)`` int; :data:`NONE` if it is not, or nobody knows
    """

    safe: NDArray[np.bool_]
    score: NDArray[np.float32]
    p_safe: NDArray[np.float32]
    constraint: NDArray[np.intp]
    margin: NDArray[np.float32]
    step: NDArray[np.intp]

    @classmethod
    def by_critic(cls, values: NDArray[np.float32], threshold: float) -> "Verdict":
        """
        :param values: the viability critic's, overall and by constraint, ``(r, 1 + m)``
        :param threshold: least value of an action that passes
        :return: what it says alone, ``r`` rows
        """
        score, margins = values[:, 0], values[:, 1:]
        return cls(
            safe=(score >= threshold) & np.isfinite(score),
            score=score,
            p_safe=np.full(len(values), np.nan, dtype=np.float32),
            constraint=margins.argmin(axis=1),
            margin=margins.min(axis=1),
            step=np.full(len(values), NONE, dtype=np.intp),
        )

    def put(self, rows: NDArray[np.intp], other: "Verdict") -> None:
        """
        :param rows: which rows to replace, ``(k,)``
        :param other: ``k`` rows
        """
        for name in self.__slots__:
            getattr(self, name)[rows] = getattr(other, name)

    def take(self, rows: Any) -> "Verdict":
        """
        :param rows: any index of rows
        :return: these rows
        """
        return Verdict(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(slots=True)
class Decision:
    """
    What a shield does with the actions proposed to ``n`` environments.

    :param proposed_action: in the units of the action space, ``(n, ...)``
    :param action: what is to be executed, likewise
    :param intervened: where it differs from the proposed one, ``(n,)`` bool
    :param infeasible: where no action that was tried passes, so that the safest was taken, ``(n,)`` bool
    :param proposed: the verdict on the proposed actions, ``n`` rows
    :param executed: the verdict on the executed ones, ``n`` rows
    """

    proposed_action: NDArray[Any]
    action: NDArray[Any]
    intervened: NDArray[np.bool_]
    infeasible: NDArray[np.bool_]
    proposed: Verdict
    executed: Verdict
