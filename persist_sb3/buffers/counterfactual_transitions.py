"""Transitions for the models of survival, some told as they would have been with other internal variables."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persist_sb3.batch import take, with_rows
from persist_sb3.buffers.near_boundary import NearBoundaryBuffer
from persist_sb3.buffers.transitions import Transitions, TransitionStore, as_batch
from persist_sb3.counterfactuals import Counterfactuals
from persist_sb3.models.spec import StateSpec


class CounterfactualTransitions:
    """
    Draws transitions from a store, or near the boundary, and changes the internal variables of a share of them: see
    :class:`~persist_sb3.counterfactuals.Counterfactuals`. A critic of survival so learns of deaths that nobody died,
    be it from an agent that has become careful, or from safe demonstrations alone. What is outside the limits after the
    step is taken for the end of a life, whether the environment ends its episodes there or not.

    How variables change is learned from the store as soon as it has enough transitions, and anew as they become more;
    until then the change is taken to be what it was.

    :param store: has the transitions
    :param spec: the environment's state and actions, with all of its constraints
    :param entries: where the observation shows each internal variable, by name
    :param share: part of the transitions that are changed, in ``[0, 1]``
    :param source: draws them. Default: the store
    :param learned: what :meth:`state_dict` returned of another one
    :raises ValueError: if the share is out of its range, or the observation does not show every internal variable as a
        number
    """

    def __init__(
        self,
        store: TransitionStore,
        spec: StateSpec,
        entries: Mapping[str, str],
        *,
        share: float,
        source: TransitionStore | NearBoundaryBuffer | None = None,
        learned: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share={share} must be in [0, 1]")
        self.store = store
        self.share = share
        self._source = store if source is None else source
        self._worlds = Counterfactuals(spec, entries, learned)

    def state_dict(self) -> dict[str, Any]:
        """
        :return: what was learned
        """
        return self._worlds.state_dict()

    def sample(self, batch_size: int, generator: np.random.Generator, demonstration_share: float = 0.0) -> Transitions:
        """
        :param batch_size: how many, ``b``
        :param generator: decides which, and what is changed in them
        :param demonstration_share: as in ``store.sample``
        :return: the transitions; of those that were changed, ``action``, ``reward`` and ``terms`` are as they were,
            ``(b, ...)``
        :raises RuntimeError: if nothing has been kept, or preloaded, that could be drawn, or the observation shows an
            internal variable twice
        """
        self._learn(generator, demonstration_share)
        batch = self._source.sample(batch_size, generator, demonstration_share)
        changed = np.flatnonzero(generator.random(batch_size) < self.share)
        return self._changed(batch, changed, generator) if len(changed) else batch

    def _learn(self, generator: np.random.Generator, demonstration_share: float) -> None:
        worlds, store = self._worlds, self.store
        shown = store.demonstrated if demonstration_share else 0
        kept, seen = (len(store), store.written) if demonstration_share < 1.0 else (0, 0)
        count = worlds.due(shown + kept, shown + seen)
        if count:
            some = store.sample(count, generator, demonstration_share)
            action = worlds.spec.encode_action(some.executed_action)
            worlds.learn(some.observation, action, some.next_observation, seen=shown + seen)

    def _changed(self, batch: Transitions, rows: NDArray[np.intp], generator: np.random.Generator) -> Transitions:
        """
        :param batch: ``(b, ...)``, left as it is
        :param rows: of those to change, ``(n,)``
        :param generator: of chance
        :return: ``(b, ...)``
        """
        was = Transitions(**take(as_batch(batch), rows))
        draws = generator.random((2, *was.internal.shape))
        told = self._worlds.retell(was.observation, was.next_observation, was.internal, was.next_internal, draws)
        terminated = told.ends(was.terminated)
        became = replace(
            was,
            observation=told.observation,
            next_observation=told.next_observation,
            internal=told.x,
            next_internal=told.x_next,
            cost=np.where(np.isnan(was.cost), np.nan, told.dies),
            terminated=terminated,
            truncated=was.truncated & ~terminated,
            done=was.truncated | terminated,
        )
        return Transitions(**with_rows(as_batch(batch), rows, as_batch(became)))
