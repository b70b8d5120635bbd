"""What every layer that executes other actions than it is given does about them."""

import zlib
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, take, with_rows
from persist_sb3.infos import Infos
from persist_sb3.streams import Streams
from persist_sb3.wrappers.layer import Layer, Lookup, Step


class InterveningLayer(Layer):
    """
    Base of the layers that replace actions. It keeps what they decide by, the observation and the internal variables
    before the step, and their random streams; and it publishes what :meth:`act` notes in ``_intervened``, ``(n,)``:
    ``info["intervened"]``, and there ``info["executed_action"]``.
    """

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self._streams = Streams(num_envs, salt=zlib.crc32(type(self).__name__.encode()))
        self._observation: Batch = None
        self._x = np.zeros((num_envs, len(lookup("viability").dims)))
        self._intervened = np.zeros(num_envs, dtype=bool)

    def seed(self, slots: NDArray[np.intp], seeds: NDArray[np.uint64]) -> None:
        self._streams.seed(slots, seeds)

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        super().begin(slots, observation, infos)
        if len(slots) < self.num_envs:
            observation = with_rows(self._observation, slots, take(observation, slots))
        self._observation = observation
        self._x = with_rows(self._x, slots, infos.column(("internal",), slots))

    def after(self, step: Step) -> NDArray[np.float64]:
        infos = step.infos
        self._observation = step.next_observation
        self._x = infos.column(("internal",), self.everyone)
        self._intervened = self._intervened & step.live
        infos.publish("intervened", self.everyone, self._intervened)
        changed = np.flatnonzero(self._intervened)
        if len(changed):
            infos.publish("executed_action", changed, step.action[changed])
        return super().after(step)
