"""The unit of an intrinsic reward: how much its discounted sum varies."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Weight and variance of the prior, in rewards: negligible after the first few, and the reference's.
PRIOR = 1e-4

#: No reward is divided by less than this.
FLOOR = 1e-8


class ForwardScale:
    """
    Running standard deviation of the discounted sum of past rewards,
    ``c_t = gamma * c_{t-1} + r_t``, which Burda et al. ("Exploration by random network distillation", ICLR 2019,
    section 2.4) divide intrinsic rewards by, so that one weight suits every environment and stage of training.

    The sum runs forward in time and over the ends of episodes, since novelty outlives them. It is only measured: the
    reward is divided by its deviation and stays in proportion to the novelty of the step itself.

    :param gamma: discount factor of the sum, in ``[0, 1)``
    :raises ValueError: if it is out of its range
    """

    def __init__(self, gamma: float = 0.99) -> None:
        if not 0.0 <= gamma < 1.0:
            raise ValueError(f"gamma={gamma} must be in [0, 1): the discounted sum never ends")
        self.gamma = gamma
        # Plain moments are exact enough: a sum that varies by a thousandth of itself loses 6 of float64's 16 digits.
        self._count, self._total, self._square = PRIOR, 0.0, PRIOR
        self.sums: NDArray[np.float64] | None = None

    def update(self, rewards: NDArray[np.float64]) -> None:
        """
        :param rewards: of one step, ``(n,)``
        """
        self.extend(rewards[None])

    def extend(self, rewards: NDArray[np.float64]) -> None:
        """
        :param rewards: of ``t`` steps, ``(t, n)``
        """
        sums = np.empty(rewards.shape)
        last = np.zeros(rewards.shape[1]) if self.sums is None else self.sums
        for row, step in zip(sums, rewards, strict=True):
            np.multiply(last, self.gamma, out=row)
            row += step
            last = row
        self.sums = last.copy()
        self._count += sums.size
        self._total += float(sums.sum())
        self._square += float(np.square(sums).sum())

    def restart(self) -> None:
        """Forget the sums, as other environments follow; what was measured remains."""
        self.sums = None

    @property
    def measured(self) -> int:
        """How many rewards were measured."""
        return round(self._count - PRIOR)

    @property
    def std(self) -> float:
        """Standard deviation of every sum so far, at least :data:`FLOOR`."""
        mean = self._total / self._count
        return max(self._square / self._count - mean**2, FLOOR**2) ** 0.5

    def state_dict(self) -> dict[str, Any]:
        """
        :return: moments and sums
        """
        return {"moments": [self._count, self._total, self._square], "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` returned
        """
        self._count, self._total, self._square = state["moments"]
        self.sums = state["sums"]
