"""An intrinsic reward as a function of transitions: what a layer pays now, and a replay buffer pays again later."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from persist_sb3.batch import Batch

Floats = NDArray[np.float64]


class Moves(NamedTuple):
    """
    ``n`` transitions ``(s, a, s')``, ``s = [o, x]``.

    :param observation: ``o``, before ``VecNormalize``, ``(n, ...)``
    :param internal: internal variables ``x``, ``(n, d)``
    :param action: what was executed, in the units of the action space, ``(n, ...)``
    :param next_observation: ``o'``: the last observation where an episode ended, ``(n, ...)``
    :param next_internal: ``x'``, ``(n, d)``
    """

    observation: Batch
    internal: Floats
    action: NDArray[Any]
    next_observation: Batch
    next_internal: Floats


class Bonus(Protocol):
    """
    One kind of intrinsic reward. It holds parameters only, so that it can be sent from one process to another; what is
    trained is handed in: the shared parts of :class:`~persist_sb3.state.PersistState`, by name.
    """

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the shared parts that it takes."""
        ...

    def score(self, parts: Mapping[str, Any], moves: Moves) -> Floats:
        """
        :param parts: those in :attr:`parts`
        :param moves: ``n`` transitions
        :return: what each is worth, in units of its own, ``(n,)``
        """
        ...

    def unit(self, parts: Mapping[str, Any]) -> float:
        """
        :param parts: those in :attr:`parts`
        :return: what a score is multiplied with to be a bonus of weight 1; 0 until that was measured
        """
        ...
