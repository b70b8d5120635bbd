"""Transitions near the boundary of the viability set, and of which the models disagree, for a share of each batch."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from persist_sb3.buffers.transitions import Transitions, TransitionStore, concatenate
from persist_sb3.viability import ViabilitySet

#: What the greatest disagreements are told by: those of so many transitions back, looked at anew after a tenth of them.
WINDOW = 2000


class NearBoundaryBuffer:
    """
    Remembers which transitions of a store are worth a second look: where the smallest scaled margin was within ``[0,
    eps)`` before the step or after it, and, if models are asked, where they disagree most. Only their places are kept,
    in a ring of the store's own order, so finding those that the store still has takes one binary search.

    :param store: has the transitions; its capacity is what can be remembered
    :param viability: the constraints
    :param eps: margin below which a state is near the boundary, in units of the constraints' scales, positive
    :param share: part of each batch that is drawn from the remembered transitions, in ``[0, 1]``
    :param disagreement: gives a number a transition, ``(n,)``, the larger the less an ensemble agrees about it
    :param quantile: a disagreement above this quantile of the recent ones is remembered, in ``(0, 1)``
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        store: TransitionStore,
        viability: ViabilitySet,
        *,
        eps: float = 0.1,
        share: float = 0.0,
        disagreement: Callable[[Transitions], NDArray[np.floating]] | None = None,
        quantile: float = 0.95,
    ) -> None:
        if not eps > 0.0:
            raise ValueError(f"eps={eps} must be positive")
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share={share} must be in [0, 1]")
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile={quantile} must be in (0, 1)")
        self.store = store
        self.viability = viability
        self.eps = eps
        self.share = share
        self.disagreement = disagreement
        self.quantile = quantile
        # Of the remembered transitions: how many the store had written before each, in ascending order.
        self._serials = np.empty(0, dtype=np.int64)
        self._begin = self._end = 0
        self._recent = np.empty(0)
        self._unseen = 0
        self._threshold = np.inf

    def add(self, transitions: Transitions) -> None:
        """
        Take note of what the store has just read.

        :param transitions: what ``store.read`` returned at this step, ``(n, ...)``
        """
        noted = self.is_near(transitions)
        if self.disagreement is not None:
            noted = noted | self._is_disputed(np.asarray(self.disagreement(transitions), dtype=np.float64))
        serials = self.store.written - len(transitions) + np.flatnonzero(noted)
        if self._end + len(serials) > len(self._serials):
            self._make_room(len(serials))
        self._serials[self._end : self._end + len(serials)] = serials
        self._end += len(serials)

    def is_near(self, transitions: Transitions) -> NDArray[np.bool_]:
        """
        :param transitions: ``(n, ...)``
        :return: whether the state before or after the step is alive and near the boundary, ``(n,)``
        """
        margin = self.viability.margins(np.stack([transitions.internal, transitions.next_internal])).min(axis=-1)
        near: NDArray[np.bool_] = ((margin >= 0.0) & (margin < self.eps)).any(axis=0)
        return near

    def _is_disputed(self, disagreement: NDArray[np.float64]) -> NDArray[np.bool_]:
        disputed: NDArray[np.bool_] = disagreement > self._threshold
        self._recent = np.concatenate([self._recent, disagreement])[-WINDOW:]
        self._unseen += len(disagreement)
        if self._unseen >= WINDOW // 10:
            self._threshold = float(np.quantile(self._recent, self.quantile))
            self._unseen = 0
        return disputed

    def _make_room(self, count: int) -> None:
        """
        Move what the store still has to the front, where twice as much fits: each number is moved but now and then.

        :param count: how many are to be added
        """
        kept = self._serials[self._alive() : self._end]
        self._serials = np.concatenate([kept, np.empty(max(len(kept), count, 1024), dtype=np.int64)])
        self._begin, self._end = 0, len(kept)

    def _alive(self) -> int:
        """
        :return: index of the oldest that the store still has
        """
        oldest = self.store.written - len(self.store)
        self._begin += int(np.searchsorted(self._serials[self._begin : self._end], oldest))
        return self._begin

    def __len__(self) -> int:
        """Number of transitions remembered that the store still has."""
        return self._end - self._alive()

    def sample(self, batch_size: int, generator: np.random.Generator, demonstration_share: float = 0.0) -> Transitions:
        """
        :param batch_size: how many, ``b``
        :param generator: decides which
        :param demonstration_share: as in ``store.sample``, of what is not drawn near the boundary
        :return: transitions: those from near the boundary first, as far as there are any, and the rest as
            ``store.sample`` draws it, ``(b, ...)``
        :raises RuntimeError: if nothing has been kept, or preloaded, that could be drawn
        """
        count = round(self.share * batch_size) if self.share and len(self) else 0
        rest = batch_size - count
        if not count:
            return self.store.sample(rest, generator, demonstration_share)
        serials = self._serials[generator.integers(self._alive(), self._end, size=count)]
        near = self.store.recall(self.store.written - 1 - serials)
        return concatenate([near, self.store.sample(rest, generator, demonstration_share)]) if rest else near
