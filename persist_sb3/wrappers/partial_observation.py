"""An agent that does not see all of its internal variables, or sees them late, noisily, or not always."""

import difflib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch
from persist_sb3.infos import Infos
from persist_sb3.paths import locate, parse_path
from persist_sb3.streams import Streams
from persist_sb3.wrappers.adapters import LayerOwner, LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.layer import Layer, Lookup, declared


class PartialObservationLayer(Layer):
    """
    Degrades the internal variables in the observation, in this order: ``delay`` steps late (until then the value at the
    episode's start), Gaussian ``noise`` clipped to the observation space, and a ``dropout`` that hides a value for one
    step. ``info["internal"]`` keeps the truth, for metrics and for models that may be trained on it.

    :param hide: variables that the agent never sees
    :param noise: standard deviation, in the variable's unit; one number for all that the observation shows, or by name
    :param delay: in steps, likewise
    :param dropout: probability that a value is missing, likewise
    :param fill: what stands for a missing value: ``"zero"``, or ``"last"``, the value that was last seen (zero if none
        was)
    :raises ValueError: if a parameter is out of its range
    :raises RuntimeError: if a variable is unknown or the observation does not show it
    """

    def __init__(
        self,
        hide: Sequence[str] = (),
        noise: float | Mapping[str, float] = 0.0,
        delay: int | Mapping[str, int] = 0,
        dropout: float | Mapping[str, float] = 0.0,
        fill: Literal["zero", "last"] = "zero",
    ) -> None:
        if fill not in ("zero", "last"):
            raise ValueError(f"fill={fill!r} must be 'zero' or 'last'")
        for key, given, high in (("noise", noise, np.inf), ("delay", delay, np.inf), ("dropout", dropout, 1.0)):
            for value in given.values() if isinstance(given, Mapping) else [given]:
                if not 0.0 <= value <= high or value != value or (key == "delay" and value != int(value)):
                    unit = "a whole number of steps" if key == "delay" else f"between 0 and {high}"
                    raise ValueError(f"{key}={value!r} must be {unit}")
        self._hide = (hide,) if isinstance(hide, str) else tuple(hide)
        self._noise, self._delay, self._dropout = noise, delay, dropout
        self._fill = fill

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        names: tuple[str, ...] = lookup("internal_names")
        entries: dict[str, str] = lookup("internal_entries")
        mentioned = {*self._hide, *(name for by in self._by_name() for name in by)}
        for name in mentioned:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, n=1)
                hint = f", did you mean {nearest[0]!r}?" if nearest else "."
                raise RuntimeError(f"{name!r} is no internal variable{hint} Known: {', '.join(names)}")
            if name not in entries:
                raise RuntimeError(
                    f"the observation does not show {name!r}, so there is nothing to degrade. It shows: "
                    f"{', '.join(entries) or 'no internal variable'} (InternalState(append=True) shows them all)"
                )
        self.shown = (
            tuple(entries) if any(not isinstance(g, Mapping) and g for g in self._given()) else tuple(mentioned)
        )
        self.shown = tuple(name for name in names if name in self.shown)
        #: Variables that the agent does not see as they are, here or in a layer below.
        self.degraded = tuple(
            name for name in names if name in {*self.shown, *declared(lookup, "internal_degraded", ())}
        )
        self._leaves = [locate(parse_path(entries[name])[1], observation_space) for name in self.shown]
        bounds = [leaf.bounds(observation_space) for leaf in self._leaves]
        self._low, self._high = np.array(bounds, dtype=np.float64).reshape(-1, 2).T
        self._sd = self._vector(self._noise)
        self._lag = self._vector(self._delay).astype(np.intp)
        self._missing = np.where(np.isin(self.shown, self._hide), 1.0, self._vector(self._dropout))
        self._streams = Streams(num_envs, salt=zlib.crc32(type(self).__name__.encode()))
        # The last values of each environment; row t modulo the length holds those of step t.
        self._past = np.zeros((num_envs, int(self._lag.max(initial=0)) + 1, len(self.shown)))
        self._seen = np.zeros((num_envs, len(self.shown)))
        self._time = np.zeros(num_envs, dtype=np.intp)

    def _given(self) -> tuple[Any, ...]:
        return self._noise, self._delay, self._dropout

    def _by_name(self) -> list[Mapping[str, float]]:
        return [given for given in self._given() if isinstance(given, Mapping)]

    def _vector(self, given: float | Mapping[str, float]) -> NDArray[np.float64]:
        if isinstance(given, Mapping):
            return np.array([given.get(name, 0.0) for name in self.shown], dtype=np.float64)
        return np.full(len(self.shown), given, dtype=np.float64)

    def seed(self, slots: NDArray[np.intp], seeds: NDArray[np.uint64]) -> None:
        self._streams.seed(slots, seeds)

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        first = np.stack([leaf.read(observation)[slots] for leaf in self._leaves], axis=1)
        self._past[slots] = first[:, None]
        self._seen[slots] = 0.0
        self._time[slots] = 0

    def view(self, slots: NDArray[np.intp], observation: Batch) -> Batch:
        columns = np.arange(len(self.shown))
        length = self._past.shape[1]
        now = self._time[slots]
        self._past[slots, now % length] = np.stack([leaf.read(observation) for leaf in self._leaves], axis=1)
        values = self._past[slots[:, None], (now[:, None] - self._lag) % length, columns]
        self._time[slots] += 1
        if self._sd.any():
            noise = self._streams.normal(slots, len(columns))
            values = np.clip(values + self._sd * noise, self._low, self._high)
        if self._missing.any():
            missing = self._streams.uniform(slots, len(columns)) < self._missing
            values = np.where(missing, self._seen[slots], values)
        if self._fill == "last":
            self._seen[slots] = values
        for leaf, column in zip(self._leaves, values.T, strict=True):
            observation = leaf.write(observation, column)
        return observation


class _Declarations(LayerOwner):
    """What it hides, for the layers above."""

    layer: PartialObservationLayer

    @property
    def internal_degraded(self) -> tuple[str, ...]:
        """Variables that the observation does not always show as they are."""
        return self.layer.degraded


class PartialObservation(_Declarations, LayerWrapper):
    """:class:`PartialObservationLayer` around a ``gymnasium.Env``."""

    layer_type = PartialObservationLayer


class VecPartialObservation(_Declarations, VecLayerWrapper):
    """:class:`PartialObservationLayer` around SB3's ``VecEnv``."""

    layer_type = PartialObservationLayer


class VectorPartialObservation(_Declarations, VectorLayerWrapper):
    """:class:`PartialObservationLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = PartialObservationLayer
