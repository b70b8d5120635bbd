"""Where the internal variables come from: the environment's info, its observation, or a simulation beside it."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch
from persist_sb3.infos import Infos, Path
from persist_sb3.paths import ObservationEntry, SourceError, locate, parse_path, write_path
from persist_sb3.viability import checked_names, unknown_name

__all__ = ["InternalSource", "SimulatedVariable", "SourceError"]

WHOLE: Path = ("internal",)


@dataclass(frozen=True)
class SimulatedVariable:
    """
    An internal variable that the environment does not have: a battery, a hunger. Each step,
    ``x' = clip(x - drain - cost(a) + reward_gain * reward, low, high)``, where ``cost(a)`` is ``action_cost[a]`` for
    Discrete actions and ``action_cost * ||a||_1`` for Box actions.

    :param initial: value at the start of each episode
    :param drain: what a step costs, in units of the variable
    :param action_cost: for Discrete actions one number an action, for Box actions the cost of a unit of action
    :param reward_gain: what a unit of the environment's own reward restores
    :param low: least value
    :param high: greatest value
    :raises ValueError: if a number is not finite, ``low`` is not below ``high``, or ``initial`` is not between them
    """

    initial: float
    drain: float = 0.0
    action_cost: float | Sequence[float] = 0.0
    reward_gain: float = 0.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.action_cost, Sequence | np.ndarray):
            object.__setattr__(self, "action_cost", tuple(float(cost) for cost in self.action_cost))
        for field in fields(self):
            value = getattr(self, field.name)
            if not np.isfinite(value).all():
                raise ValueError(f"{field.name}={value} of a simulated variable must be finite")
        if not self.low < self.high:
            raise ValueError(f"low={self.low} of a simulated variable must be below high={self.high}")
        if not self.low <= self.initial <= self.high:
            raise ValueError(f"initial={self.initial} of a simulated variable must be in [{self.low}, {self.high}]")

    @classmethod
    def from_mapping(cls, parameters: Mapping[str, Any]) -> "SimulatedVariable":
        """
        :param parameters: the parameters by name, as a configuration file gives them
        :return: the variable
        :raises ValueError: for an unknown parameter, naming the nearest known one, or a missing ``initial``
        """
        known = [field.name for field in fields(cls)]
        for key in parameters:
            if key not in known:
                nearest = difflib.get_close_matches(str(key), known, n=1)
                hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
                raise ValueError(f"a simulated variable has no parameter {key!r}{hint}; there are {', '.join(known)}")
        if "initial" not in parameters:
            raise ValueError(f"a simulated variable needs its initial value; got only {dict(parameters)}")
        return cls(**parameters)


class InternalSource:
    """
    Gathers ``x`` of ``n`` environments, one variable from each source.

    A source is a path into the info (``info.energy``, ``info.internal[0]``, ``info['odd key']``), a path into the
    observation (``obs`` itself if it is one number, ``obs[2]``, ``obs.battery``, ``obs[1][0]``), or a
    :class:`SimulatedVariable` (or a mapping of its parameters). Without sources, ``x`` is ``info["internal"]``: a
    vector in the order of ``dims``, or a dict by name.

    :param dims: names of the variables, in the order of the last axis of ``x``
    :param sources: one source for each of them
    :raises ValueError: if a variable has no source, a source has no variable (naming the nearest), or a path is
        malformed
    """

    def __init__(
        self,
        dims: Sequence[str],
        sources: Mapping[str, "str | Mapping[str, Any] | SimulatedVariable"] | None = None,
    ) -> None:
        self.dims = checked_names(dims)
        self.entries: dict[str, str] = {}
        self._whole = sources is None
        self._reported: dict[int, Path] = {}
        self._shown: dict[int, Path] = {}
        self._simulated: dict[int, SimulatedVariable] = {}
        if sources is None:
            return
        for name in sources:
            if name not in self.dims:
                raise ValueError(f"sources: {unknown_name(name, self.dims)}")
        for column, name in enumerate(self.dims):
            if name not in sources:
                raise ValueError(f"sources: '{name}' has none; give it one, for example 'info.{name}'")
            self._add(column, sources[name])

    def _add(self, column: int, source: "str | Mapping[str, Any] | SimulatedVariable") -> None:
        if isinstance(source, Mapping):
            source = SimulatedVariable.from_mapping(source)
        if isinstance(source, SimulatedVariable):
            self._simulated[column] = source
        elif isinstance(source, str):
            root, path = parse_path(source)
            (self._reported if root == "info" else self._shown)[column] = path
        else:
            raise TypeError(
                f"the source of '{self.dims[column]}' must be a path such as 'info.energy' or 'obs[2]', or a "
                f"SimulatedVariable, not {source!r}"
            )

    def attach(self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """
        Meet the environments. Afterwards :attr:`entries` says which variables the observation shows, and where, and
        :attr:`low` and :attr:`high` what is known of the range of each, ``(d,)``.

        :param num_envs: how many there are, ``n``
        :param observation_space: of one environment
        :param action_space: of one environment
        :raises SourceError: if the observation has no such entry, or the actions cannot be priced as they are
        """
        self._everyone = np.arange(num_envs)
        self._located: dict[int, ObservationEntry] = {}
        self.low = np.full(len(self.dims), -np.inf)
        self.high = np.full(len(self.dims), np.inf)
        for column, path in self._shown.items():
            self._located[column] = entry = locate(path, observation_space)
            self.entries[self.dims[column]] = entry.text
            self.low[column], self.high[column] = entry.bounds(observation_space)
        for column, variable in self._simulated.items():
            self.low[column], self.high[column] = variable.low, variable.high

        simulated = list(self._simulated.values())
        self._simulated_columns = list(self._simulated)
        self._initial = np.array([variable.initial for variable in simulated])
        self._drain = np.array([variable.drain for variable in simulated])
        self._gain = np.array([variable.reward_gain for variable in simulated])
        self._low = np.array([variable.low for variable in simulated])
        self._high = np.array([variable.high for variable in simulated])
        self._action_space = action_space
        # (n_actions, s) for Discrete actions, else (s,)
        self._prices = np.array([self._price(column, action_space) for column in self._simulated]).T
        self._state = np.tile(self._initial, (num_envs, 1))

    def _price(self, column: int, action_space: spaces.Space[Any]) -> float | Sequence[float]:
        name, cost = self.dims[column], self._simulated[column].action_cost
        if isinstance(action_space, spaces.Discrete):
            if cost == 0.0:
                return [0.0] * int(action_space.n)
            if not isinstance(cost, Sequence) or len(cost) != action_space.n:
                raise SourceError(
                    f"action_cost={cost} of '{name}': the actions are Discrete, so give a list of {action_space.n} "
                    "costs, one an action (a cost that all share is drain)"
                )
        elif isinstance(cost, Sequence) or not (cost == 0.0 or isinstance(action_space, spaces.Box)):
            raise SourceError(
                f"action_cost={cost} of '{name}': the actions are {action_space}, but only Discrete actions can have a "
                "list of costs, and only Box actions one cost for their magnitude"
            )
        return cost

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> NDArray[np.float64]:
        """
        New episodes begin.

        :param slots: where, ``(k,)``
        :param observation: all ``n`` rows; only those of ``slots`` are read
        :param infos: what the resets reported
        :return: ``x`` there, ``(k, d)``
        :raises MissingInfoError: if an info lacks an entry
        :raises SourceError: if an entry is not one number
        """
        self._state[slots] = self._initial
        return self._read(slots, observation, infos)

    def step(
        self,
        observation: Batch,
        action: Batch,
        reward: NDArray[np.float64],
        infos: Infos,
        live: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """
        :param observation: the true successors, ``(n, ...)``
        :param action: what was executed, ``(n, ...)``
        :param reward: the environment's own, ``(n,)``
        :param infos: what the step reported
        :param live: False where no transition took place, ``(n,)``; simulated variables stand still there
        :return: ``x'``, ``(n, d)``, a new array
        :raises MissingInfoError: if an info lacks an entry
        :raises SourceError: if an entry is not one number
        """
        if self._simulated:
            moved = self._state - self._drain - self._cost(action) + self._gain * reward[:, None]
            self._state = np.where(live[:, None], np.minimum(np.maximum(moved, self._low), self._high), self._state)
        return self._read(self._everyone, observation, infos)

    def _cost(self, action: Batch) -> NDArray[np.float64]:
        if isinstance(self._action_space, spaces.Discrete):
            costs: NDArray[np.float64] = self._prices[np.asarray(action).reshape(-1) - self._action_space.start]
            return costs
        if not self._prices.any():
            return self._prices
        return np.abs(action, dtype=np.float64).reshape(len(action), -1).sum(axis=1, keepdims=True) * self._prices

    def _read(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> NDArray[np.float64]:
        if self._whole:
            return self._read_whole(slots, infos)
        x = np.empty((len(slots), len(self.dims)))
        for column, path in self._reported.items():
            x[:, column] = _column(path, slots, infos)
        for column, entry in self._located.items():
            x[:, column] = entry.read(observation)[slots]
        x[:, self._simulated_columns] = self._state[slots]
        return x

    def _read_whole(self, slots: NDArray[np.intp], infos: Infos) -> NDArray[np.float64]:
        if infos.is_dict("internal", slots):
            return np.stack([_column((*WHOLE, name), slots, infos) for name in self.dims], axis=1)
        x = _entries(WHOLE, slots, infos)
        if x.shape != (len(slots), len(self.dims)):
            raise SourceError(
                f"info['internal'] has shape {x.shape[1:]}, but there are {len(self.dims)} internal variables: "
                f"{self.dims}. Correct dims, or give sources={{name: 'info.internal[0]', ...}}"
            )
        return x


def _entries(path: Path, slots: NDArray[np.intp], infos: Infos) -> NDArray[np.float64]:
    try:
        return infos.column(path, slots)
    except (TypeError, ValueError, IndexError) as error:
        raise SourceError(f"'{write_path('info', path)}' cannot be read as numbers: {error}") from error


def _column(path: Path, slots: NDArray[np.intp], infos: Infos) -> NDArray[np.float64]:
    column = _entries(path, slots, infos)
    if column.ndim != 1:
        text = write_path("info", path)
        raise SourceError(
            f"'{text}' is not one number but has shape {column.shape[1:]}: name an entry, such as {text}[0]"
        )
    return column
