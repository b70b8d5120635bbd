"""Counter-examples: what lies outside the limits, for models that have only been shown what lies inside."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persist_sb3.batch import Batch, take
from persist_sb3.buffers.transitions import Transitions, as_batch, concatenate
from persist_sb3.models.spec import StateSpec
from persist_sb3.paths import locate, parse_path

#: Values drawn for each state until one breaks a constraint.
TRIES = 16


class CounterExamples:
    """
    Makes states outside the limits of states inside: one internal variable is drawn anew, uniformly in its physical
    range, until a constraint breaks. That they are outside is known from the constraints; nothing is claimed about what
    leads there. A critic that has seen nothing but safe demonstrations learns from them where its values must be
    negative (positive-only data with sampled negatives, as in Robey et al., "Learning control barrier functions from
    expert demonstrations", CDC 2020).

    A variable without a physical limit is drawn as far beyond the values at hand as they reach from least to greatest.

    :param spec: the environment's state and actions
    :param entries: where the observation shows internal variables, by name: these are changed, too
    """

    def __init__(self, spec: StateSpec, entries: Mapping[str, str]) -> None:
        self._spec = spec
        self._shown = {
            spec.viability.dims.index(name): locate(parse_path(path)[1], spec.observation_space)
            for name, path in entries.items()
            if name in spec.viability.dims
        }

    def mixed(self, transitions: Transitions, share: float, generator: np.random.Generator) -> Transitions:
        """
        :param transitions: a batch from inside the limits, ``(n, ...)``
        :param share: part of it that gives way to counter-examples, in ``[0, 1)``
        :param generator: of chance
        :return: ``n`` transitions, or fewer where a draw failed
        """
        count = round(share * len(transitions))
        inside, changed = np.split(np.arange(len(transitions)), [len(transitions) - count])
        rows = as_batch(transitions)
        outside = self.draw(Transitions(**take(rows, changed)), generator)
        return concatenate([Transitions(**take(rows, inside)), outside])

    def draw(self, transitions: Transitions, generator: np.random.Generator) -> Transitions:
        """
        :param transitions: inside the limits, ``(n, ...)``
        :param generator: of chance
        :return: of their states after the step, what is outside: as transitions that end where they begin, by any
            action; at most ``n``, since a draw may fail, ``(k, ...)``
        """
        x = self._outside(transitions.next_internal, generator)
        broken = np.flatnonzero(~self._spec.viability.contains(x))
        x, rows = x[broken], Transitions(**take(as_batch(transitions), broken))
        observation: Batch = rows.next_observation
        for column, entry in self._shown.items():
            observation = entry.write(observation, x[:, column])
        action = self._any_action(len(rows), generator).astype(rows.action.dtype)
        everywhere = np.ones(len(rows), dtype=np.bool_)
        return replace(
            rows,
            observation=observation,
            next_observation=observation,
            action=action,
            executed_action=action,
            internal=x,
            next_internal=x,
            cost=np.ones(len(rows)),
            terminated=everywhere,
            truncated=~everywhere,
            done=everywhere,
        )

    def _outside(self, x: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
        viability = self._spec.viability
        least, greatest = x.min(axis=0), x.max(axis=0)
        low = np.where(np.isfinite(viability.low), viability.low, 2.0 * least - greatest)
        high = np.where(np.isfinite(viability.high), viability.high, 2.0 * greatest - least)
        x = x.copy()
        missing = np.arange(len(x))
        for _ in range(TRIES):
            changed = x[missing]
            columns = generator.integers(x.shape[1], size=len(missing))
            changed[np.arange(len(missing)), columns] = generator.uniform(low[columns], high[columns])
            found = ~viability.contains(changed)
            x[missing[found]] = changed[found]
            missing = missing[~found]
        return x

    def _any_action(self, count: int, generator: np.random.Generator) -> NDArray[Any]:
        spec = self._spec
        if spec.continuous:
            return spec.decode_action(generator.uniform(-1.0, 1.0, (count, spec.action_dim)))
        chosen: NDArray[Any] = spec.actions[generator.integers(len(spec.actions), size=count)]
        return chosen
