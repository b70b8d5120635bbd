"""Sequences of actions, as the source of a channel whose capacity is empowerment."""

import math

import numpy as np
from numpy.typing import NDArray

from persist_sb3.models.spec import Floats, StateSpec


class SequenceSource:
    """
    Draws sequences of ``k`` actions, each uniformly from the action space, independently of the state.

    :param spec: the environment's actions
    :param horizon: length of a sequence, ``k``
    :raises ValueError: if it is below 1, or there are too many Discrete actions to be enumerated
    """

    def __init__(self, spec: StateSpec, horizon: int) -> None:
        if horizon < 1:
            raise ValueError(f"horizon={horizon} must be at least 1")
        self.horizon = horizon
        self.width = spec.action_dim
        self._encoded = None if spec.continuous else spec.encode_action(spec.actions)

    @property
    def count(self) -> float:
        """How many sequences there are, ``|A| ** k``; infinitely many of Box actions."""
        return math.inf if self._encoded is None else float(len(self._encoded)) ** self.horizon

    @property
    def entropy(self) -> float:
        """``k log |A|`` in nats, the most empowerment there can be; infinite for Box actions."""
        return math.inf if self._encoded is None else self.horizon * math.log(len(self._encoded))

    def every(self) -> Floats:
        """
        :return: all sequences, encoded, the last action counting fastest, ``(|A| ** k, k, A)``
        :raises ValueError: if there are infinitely many
        """
        if self._encoded is None:
            raise ValueError("there are infinitely many sequences of Box actions: draw some")
        shape = (len(self._encoded),) * self.horizon
        return self._encoded[np.indices(shape).reshape(self.horizon, -1).T]

    def draw(self, count: int, generator: np.random.Generator) -> Floats:
        """
        :param count: how many, ``n``
        :param generator: decides which
        :return: encoded, ``(n, k, A)``
        """
        if self._encoded is None:
            return generator.uniform(-1.0, 1.0, (count, self.horizon, self.width)).astype(np.float32)
        which: NDArray[np.intp] = generator.integers(len(self._encoded), size=(count, self.horizon))
        return self._encoded[which]
