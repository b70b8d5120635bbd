"""What every layer that executes other actions than it is given does about them."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, take, with_rows
from persist_sb3.infos import Infos
from persist_sb3.models.belief import BeliefColumns
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.streams import Streams
from persist_sb3.wrappers.adapters import LayerOwner
from persist_sb3.wrappers.layer import Layer, Lookup, Step, declared


class InterveningLayer(Layer):
    """
    Base of the layers that replace actions. It keeps what they decide by, the states before the step, and their random
    streams; and it publishes what :meth:`act` notes in ``_intervened``, ``(n,)``: ``info["intervened"]``, and there
    ``info["executed_action"]``.

    Where a :class:`~persist_sb3.wrappers.BeliefState` lies below, a state has the belief's mean in the place of each
    hidden variable. A hidden variable without a belief is known from ``info["internal"]``.
    """

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self._streams = Streams(num_envs, salt=zlib.crc32(type(self).__name__.encode()))
        try:
            #: The environment's state and actions.
            self.spec = StateSpec(observation_space, action_space, lookup("viability"))
        except ValueError as error:
            raise RuntimeError(f"{type(self).__name__.removesuffix('Layer')}: {error}") from error
        #: Where the observation shows a belief about hidden variables, by their names.
        self.belief_entries: Mapping[str, tuple[str, str]] = declared(lookup, "belief_entries", {})
        self._belief = BeliefColumns.find(self.spec, self.belief_entries) if self.belief_entries else None
        self._observation: Batch = None
        self._x = np.zeros((num_envs, self.spec.internal_dim))
        self._state: Floats | None = None
        self._intervened = np.zeros(num_envs, dtype=bool)

    @property
    def wiring_error(self) -> RuntimeError | None:
        """What :meth:`act` would raise now because models are missing that callbacks should train; None if none is."""
        return None

    def seed(self, slots: NDArray[np.intp], seeds: NDArray[np.uint64]) -> None:
        self._streams.seed(slots, seeds)

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        super().begin(slots, observation, infos)
        if len(slots) < self.num_envs:
            observation = with_rows(self._observation, slots, take(observation, slots))
        self._observation = observation
        self._x = with_rows(self._x, slots, infos.column(("internal",), slots))
        self._state = None

    def after(self, step: Step) -> NDArray[np.float64]:
        infos = step.infos
        self._observation = step.next_observation
        self._x = infos.column(("internal",), self.everyone)
        self._state = None
        self._intervened = self._intervened & step.live
        infos.publish("intervened", self.everyone, self._intervened)
        changed = np.flatnonzero(self._intervened)
        if len(changed):
            infos.publish("executed_action", changed, step.action[changed])
        return super().after(step)

    def _encoded(self) -> Floats:
        """
        :return: the states that the environments are in, as far as they are known, ``(n, D)``
        """
        if self._state is None:
            self._state = self.spec.encode(self._observation, self._x)
            if self._belief is not None:
                self._state = self._belief.believed(self._state)
        return self._state


class InterveningOwner(LayerOwner):
    """What a wrapper of such a layer says about it, for the callbacks above."""

    layer: InterveningLayer

    @property
    def wiring_error(self) -> RuntimeError | None:
        """See :attr:`InterveningLayer.wiring_error`."""
        return self.layer.wiring_error
