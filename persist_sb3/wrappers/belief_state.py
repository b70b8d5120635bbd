"""Shows the agent what can be told about the internal variables that it does not see."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, flatten, take, with_rows
from persist_sb3.infos import Infos
from persist_sb3.models.base import check_spec, rebuild
from persist_sb3.models.belief import GRUBelief, prior
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.kalman import Array, ExtendedKalmanFilter, Function
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.paths import ObservationEntry, locate, parse_path
from persist_sb3.state import last_loaded
from persist_sb3.viability import unknown_name
from persist_sb3.wrappers.adapters import LayerOwner, LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.extended import ExtendedObservation
from persist_sb3.wrappers.internal_state import NonFiniteError
from persist_sb3.wrappers.layer import Layer, Lookup, Step, declared

Slots = NDArray[np.intp]

#: Key of a Dict observation, and name of the shared part.
KEY = "belief"
INTERNAL_MODEL: Literal["internal_model"] = "internal_model"

#: Standard deviation where none is given, and the least variance of what is measured.
NOISE, LEAST_VARIANCE = 0.01, 1e-12

#: Takes observations, internal variables ``(n, d)`` and actions, and returns the next internal variables.
Dynamics = Callable[[Batch, NDArray[Any], NDArray[Any]], NDArray[Any]]
#: Who trains the part of this name, among persist_sb3.callbacks.
CALLBACKS = {KEY: "BeliefCallback", INTERNAL_MODEL: "InternalModelCallback"}


class BeliefError(RuntimeError):
    """A belief cannot be had: a model is missing, or of another environment."""


class Estimator(Protocol):
    """Keeps a belief for each of ``n`` environments."""

    @property
    def mean(self) -> Array:
        """Of the hidden variables, ``(n, k)``."""

    @property
    def variance(self) -> Array:
        """Likewise, ``(n, k)``."""

    def begin(self, slots: Slots, observation: Batch) -> None:
        """
        :param slots: where episodes begin, ``(k,)``
        :param observation: the first of each, ``(k, ...)``
        """

    def step(self, before: Batch, action: NDArray[Any], observation: Batch) -> None:
        """
        :param before: the observation that ``action`` was taken at, ``(n, ...)``
        :param action: what was done, ``(n, ...)``
        :param observation: what followed, ``(n, ...)``
        """


class GRUEstimator:
    """
    :class:`~persist_sb3.models.belief.GRUBelief`, with a memory an environment.

    :param model: trained, at least a little
    :param num_envs: ``n``
    """

    def __init__(self, model: GRUBelief, num_envs: int) -> None:
        self.model = model
        self.mean = np.zeros((num_envs, len(model.variables)))
        self.variance = np.ones((num_envs, len(model.variables)))
        self._memory = np.zeros((num_envs, model.memory), dtype=np.float32)

    def begin(self, slots: Slots, observation: Batch) -> None:
        """See :meth:`Estimator.begin`."""
        nothing = np.zeros((len(slots), self.model.spec.action_dim), dtype=np.float32)
        self._advance(slots, observation, nothing, np.zeros((len(slots), self.model.memory), dtype=np.float32))

    def step(self, before: Batch, action: NDArray[Any], observation: Batch) -> None:
        """See :meth:`Estimator.step`."""
        self._advance(slice(None), observation, self.model.spec.encode_action(action), self._memory)

    def _advance(self, slots: Any, observation: Batch, action: Floats, memory: Floats) -> None:
        flat = flatten(self.model.spec.observation_space, observation).astype(np.float32, copy=False)
        self._memory[slots], self.mean[slots], self.variance[slots] = self.model.advance(flat, action, memory)


class KalmanEstimator:
    """
    :class:`~persist_sb3.models.kalman.ExtendedKalmanFilter` over all internal variables, with a mean and a covariance
    an environment. What the observation shows of them is measured.

    :param kalman: its ``f`` takes the observation and the action beside the state
    :param noise: gives the covariance of the process from the same as ``f``; None: the filter's own
    :param entries: where the observation shows a variable, by its column
    :param columns: of the hidden variables, ``(k,)``
    :param missing: what an entry reads that shows nothing; None if none ever does
    :param num_envs: ``n``
    :param mean: at an episode's beginning, ``(d,)``
    :param variance: likewise, ``(d,)``
    """

    def __init__(
        self,
        kalman: ExtendedKalmanFilter,
        noise: Function | None,
        entries: Mapping[int, ObservationEntry],
        columns: Slots,
        missing: float | None,
        num_envs: int,
        mean: Array,
        variance: Array,
    ) -> None:
        self._kalman, self._noise = kalman, noise
        self._entries, self._columns, self._missing = entries, columns, missing
        self._start = mean, np.diag(variance)
        self._mean = np.tile(mean, (num_envs, 1))
        self._covariance = np.tile(self._start[1], (num_envs, 1, 1))

    @property
    def mean(self) -> Array:
        """Of the hidden variables, ``(n, k)``."""
        return self._mean[:, self._columns]

    @property
    def variance(self) -> Array:
        """Likewise, ``(n, k)``."""
        return self._covariance[:, self._columns, self._columns]

    def begin(self, slots: Slots, observation: Batch) -> None:
        """See :meth:`Estimator.begin`."""
        count = len(slots)
        mean, covariance = np.tile(self._start[0], (count, 1)), np.tile(self._start[1], (count, 1, 1))
        measured = self._measured(observation, count)
        self._mean[slots], self._covariance[slots] = self._kalman.update(mean, covariance, measured)

    def step(self, before: Batch, action: NDArray[Any], observation: Batch) -> None:
        """See :meth:`Estimator.step`."""
        noise = None if self._noise is None else self._noise(self._mean, before, action)
        ahead = self._kalman.predict(self._mean, self._covariance, before, action, process_noise=noise)
        self._mean, self._covariance = self._kalman.update(*ahead, self._measured(observation, len(self._mean)))

    def _measured(self, observation: Batch, count: int) -> Array:
        measured = np.full((count, self._mean.shape[1]), np.nan)
        for column, entry in self._entries.items():
            measured[:, column] = entry.read(observation)
        if self._missing is not None:
            measured[measured == self._missing] = np.nan
        return measured


class BeliefStateLayer(Layer):
    """
    Shows, behind each observation, a belief about hidden internal variables: the mean of each, and then the variance of
    each. A Dict gets the key ``belief``; a Box grows by ``2 k`` entries; any other space is flattened first. A variable
    is hidden if the observation does not show it, or if a :class:`~persist_sb3.wrappers.PartialObservation` below
    degrades it. It must lie outside of that and of ``InternalState``, and inside of ``ActionShield``.

    The estimator runs beside each environment and forgets at an episode's end. It reads the observation and the action
    that was executed, never the truth; it is the same in evaluation.

    - ``"gru"``: :class:`~persist_sb3.models.belief.GRUBelief`, which :class:`~persist_sb3.callbacks.BeliefCallback`
      trains on the truth;
    - ``"ekf"``: :class:`~persist_sb3.models.kalman.ExtendedKalmanFilter` over all internal variables, with known
      ``dynamics``, or with those that :class:`~persist_sb3.callbacks.InternalModelCallback` learns.

    Until there is a trained model, the belief is the setpoint, with the variance of a uniform distribution over the
    variable's physical range (1 if that is not bounded). In a replay the model is the one that was loaded with the
    policy.

    :param variables: those to estimate. Default: all that are hidden
    :param estimator: ``"gru"`` or ``"ekf"``
    :param dynamics: of the ``"ekf"``: a function of observations (as below this layer), internal variables ``(n, d)``
        and actions, in batches, that returns the next internal variables ``(n, d)``, each row by itself; or
        ``"internal_model"``: the learned ones
    :param process_noise: standard deviation that a step adds to what the dynamics say, in the variable's unit: one
        number, or by name. With ``"internal_model"`` the model's own comes on top. Underestimated, the filter trusts
        itself too much; its NEES tells
    :param measurement_noise: standard deviation of what the observation shows of a variable, likewise
    :param initial_std: standard deviation about the setpoint at an episode's beginning, likewise. Default: that of the
        uniform distribution
    :param missing: what the observation reads where it shows nothing of a variable, for the ``"ekf"``: 0 as
        ``PartialObservation`` and GridLife have it; None if that never happens
    :raises ValueError: if a parameter is out of its range, or the estimator lacks what it needs
    :raises RuntimeError: if a variable is unknown or not hidden, or nothing is
    """

    def __init__(
        self,
        variables: Sequence[str] | None = None,
        estimator: Literal["gru", "ekf"] = "gru",
        dynamics: Dynamics | Literal["internal_model"] | None = None,
        process_noise: float | Mapping[str, float] = 0.01,
        measurement_noise: float | Mapping[str, float] = 0.01,
        initial_std: float | Mapping[str, float] | None = None,
        missing: float | None = 0.0,
    ) -> None:
        if estimator not in ("gru", "ekf"):
            raise ValueError(f"estimator={estimator!r} must be 'gru' or 'ekf'")
        if estimator == "ekf" and not (callable(dynamics) or dynamics == INTERNAL_MODEL):
            raise ValueError(
                f"estimator='ekf' needs dynamics: a function of (observations, internal variables, actions), or "
                f"{INTERNAL_MODEL!r}, not {dynamics!r}; estimator='gru' learns without"
            )
        if estimator == "gru" and dynamics is not None:
            raise ValueError("estimator='gru' has no use for dynamics: leave them out, or use estimator='ekf'")
        if isinstance(variables, str) or (variables is not None and not len(variables)):
            raise ValueError(f"variables={variables!r} must be a list of names, or left out")
        for key, given in (
            ("process_noise", process_noise),
            ("measurement_noise", measurement_noise),
            ("initial_std", initial_std),
        ):
            for value in given.values() if isinstance(given, Mapping) else [] if given is None else [given]:
                if not (np.isfinite(value) and value >= 0.0):
                    raise ValueError(f"{key}={value!r} must be a finite standard deviation, at least 0")
        self._given_variables = variables
        self.estimator = estimator
        self._dynamics = dynamics
        self._process_noise, self._measurement_noise = process_noise, measurement_noise
        self._initial_std = initial_std
        self._missing = missing

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        self.viability = lookup("viability")
        try:
            #: What the estimate goes by.
            self.spec = StateSpec(observation_space, action_space, self.viability)
        except ValueError as error:
            raise RuntimeError(f"BeliefState: {error}") from error
        shown: Mapping[str, str] = lookup("internal_entries")
        degraded = declared(lookup, "internal_degraded", ())
        #: Names of the variables that are estimated, ``(k,)``.
        self.variables = self._hidden([name for name in self.viability.dims if name not in shown or name in degraded])
        self._columns = np.array([self.viability.dims.index(name) for name in self.variables])
        self._entries = {
            column: locate(parse_path(shown[name])[1], observation_space)
            for column, name in enumerate(self.viability.dims)
            if name in shown
        }
        self._low, self._high = self.viability.low[self._columns], self.viability.high[self._columns]
        mean, variance = prior(self.viability)
        self._start = mean, variance
        if self._initial_std is not None:
            self._start = mean, self._by_name("initial_std", self._initial_std, np.sqrt(variance)) ** 2
        self._show(observation_space)
        self._belief = np.tile(
            np.concatenate([mean[self._columns], variance[self._columns]]).astype(np.float32), (num_envs, 1)
        )
        self._estimator: Estimator | None = None
        self._model: Any = None
        self._observation: Batch = None
        self._bound = self._warned = False
        if callable(self._dynamics):
            known = self._dynamics
            self._estimator = self._kalman(lambda x, observation, action: known(observation, x, action), None)

    def _hidden(self, hidden: Sequence[str]) -> tuple[str, ...]:
        """
        :param hidden: variables that the observation does not show as they are
        :return: those to estimate
        """
        names = self.viability.dims
        for name in self._given_variables or ():
            if name not in names:
                raise RuntimeError(unknown_name(name, names))
            if name not in hidden:
                raise RuntimeError(
                    f"{name!r} is not hidden: the observation shows it as it is, so there is nothing to estimate. "
                    f"Hidden are: {', '.join(hidden) or 'none'}"
                )
        if not hidden:
            raise RuntimeError(
                f"BeliefState has nothing to estimate: the observation shows {', '.join(names)} as they are. Hide some "
                "with persist_sb3.wrappers.PartialObservation, below it, or leave BeliefState out"
            )
        return tuple(name for name in hidden if name in (self._given_variables or hidden))

    def _by_name(self, key: str, given: float | Mapping[str, float], default: Array | float) -> Array:
        names = self.viability.dims
        if not isinstance(given, Mapping):
            return np.full(len(names), given, dtype=np.float64)
        for name in given:
            if name not in names:
                raise RuntimeError(f"{key}: {unknown_name(name, names)}")
        otherwise = np.broadcast_to(default, len(names))
        return np.array([given.get(name, otherwise[i]) for i, name in enumerate(names)], dtype=np.float64)

    def _show(self, inner: spaces.Space[Any]) -> None:
        """
        :param inner: the observation space below
        """
        k = len(self.variables)
        low, high = np.append(self._low, np.zeros(k)), np.append(self._high, np.full(k, np.inf))
        self._extended = ExtendedObservation("BeliefState", inner, KEY, low, high)
        self.observation_space = self._extended.space
        means, variances = self._extended.entries[:k], self._extended.entries[k:]
        #: Where the observation shows mean and variance, by variable.
        self.entries = dict(zip(self.variables, zip(means, variances, strict=True), strict=True))
        self._shown_spec = StateSpec(self.observation_space, self.action_space, self.viability)

    def _learned(self) -> Estimator:
        spec = self._shown_spec
        extra = np.diag(self._by_name("process_noise", self._process_noise, NOISE) ** 2)

        def moments(x: Array, shown: Batch, action: NDArray[Any]) -> tuple[Floats, Floats]:
            return self._model.moments(spec.encode(shown, x), spec.encode_action(action))

        def f(x: Array, shown: Batch, action: NDArray[Any]) -> NDArray[Any]:
            return moments(x, shown, action)[0].mean(axis=0)

        def noise(x: Array, shown: Batch, action: NDArray[Any]) -> Array:
            mean, variance = moments(x, shown, action)
            total = variance.mean(axis=0) + mean.var(axis=0)
            return total[:, :, None] * np.eye(x.shape[1]) + extra

        # Wide enough for a model in single precision.
        return self._kalman(f, noise, epsilon=1e-2)

    def _kalman(self, f: Function, noise: Function | None, epsilon: float = 1e-4) -> Estimator:
        process = self._by_name("process_noise", self._process_noise, NOISE) ** 2
        measurement = self._by_name("measurement_noise", self._measurement_noise, NOISE) ** 2
        # What is measured exactly twice would leave nothing to weigh.
        kalman = ExtendedKalmanFilter(f, process, np.maximum(measurement, LEAST_VARIANCE), epsilon=epsilon)
        start = self._start
        return KalmanEstimator(kalman, noise, self._entries, self._columns, self._missing, self.num_envs, *start)

    @property
    def part(self) -> str | None:
        """Name of the shared part that it needs; None if the dynamics are known."""
        if self.estimator == "gru":
            return KEY
        return None if callable(self._dynamics) else INTERNAL_MODEL

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        self._bound = True
        part = self.part
        if part is not None and part in bundle:
            self._adopt(bundle[part])

    def _adopt(self, model: Any) -> None:
        """
        :param model: the part that it needs
        :raises BeliefError: if it is about something else
        """
        try:
            check_spec(model.spec.fingerprint, self.spec if self.estimator == "gru" else self._shown_spec)
        except ValueError as error:
            raise BeliefError(
                f"BeliefState cannot use the part {self.part!r}: {error}. Where the dynamics are learned, BeliefState "
                "must be the outermost layer that changes the observation"
            ) from error
        if isinstance(model, GRUBelief) and model.variables != self.variables:
            raise BeliefError(
                f"BeliefState estimates {', '.join(self.variables)}, and the model {', '.join(model.variables)}"
            )
        self._model = model
        if isinstance(model, GRUBelief):
            if isinstance(self._estimator, GRUEstimator) and self._estimator.model.memory == model.memory:
                self._estimator.model = model
            else:
                self._estimator = None

    def _find_model(self) -> None:
        """
        Take the model out of the policy that this process has loaded, since no callback has brought one.

        :raises BeliefError: if there are callbacks, and none trains it; or if a loaded one is of another environment
        """
        assert self.part is not None
        if self._bound:
            raise BeliefError(
                f"BeliefState(estimator={self.estimator!r}) has no part {self.part!r}: add "
                f"persist_sb3.callbacks.{CALLBACKS[self.part]}() to the callbacks"
            )
        loaded = last_loaded()
        if loaded is not None and self.part in loaded.pending:
            saved = loaded.pending[self.part]
            try:
                if self.estimator == "gru":
                    self._adopt(rebuild(saved, self.spec, GRUBelief))
                else:
                    self._adopt(rebuild(saved, self._shown_spec, InternalModel))
            except ValueError as error:
                raise BeliefError(f"BeliefState cannot use a model that was loaded: {error}") from error
        elif not self._warned:
            self._warned = True
            warnings.warn(
                "BeliefState has no model, and shows what is believed before anything is learned: train with "
                f"persist_sb3.callbacks.{CALLBACKS[self.part]}, or load a model that was trained with it",
                stacklevel=2,
            )

    def _start_estimator(self) -> None:
        """Begin to estimate, once there is a model that is trained."""
        if self._estimator is None and self._model is not None and int(self._model.updates):
            gru = self.estimator == "gru"
            self._estimator = GRUEstimator(self._model, self.num_envs) if gru else self._learned()
            # Exact where an episode has just begun; in the midst of one, what went before is lost.
            self._estimator.begin(self.everyone, self._observation)
            self._take_over(self.everyone, self._estimator)

    def begin(self, slots: Slots, observation: Batch, infos: Infos) -> None:
        rows = take(observation, slots)
        self._observation = observation if len(slots) == self.num_envs else with_rows(self._observation, slots, rows)
        self._start_estimator()
        if self._estimator is not None:
            self._estimator.begin(slots, rows)
            self._take_over(slots, self._estimator)

    def after(self, step: Step) -> NDArray[np.float64]:
        if self.part is not None and self._model is None:
            self._find_model()
        self._start_estimator()
        if self._estimator is not None:
            learned = self.part == INTERNAL_MODEL
            before = self._extended.show(self._observation, self._belief) if learned else self._observation
            self._estimator.step(before, step.action, step.next_observation)
            self._take_over(self.everyone, self._estimator)
        self._observation = step.next_observation
        return step.reward

    def _take_over(self, slots: Slots, estimator: Estimator) -> None:
        """
        :param slots: where the belief is new, ``(k,)``
        :param estimator: who estimates
        """
        mean, variance = estimator.mean[slots], estimator.variance[slots]
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            raise NonFiniteError(
                "the belief is not finite: either what an environment returned is not, or the model has diverged "
                "(lower its learning_rate), or the dynamics of the Kalman filter have"
            )
        self._belief = self._belief.copy()
        self._belief[slots] = np.concatenate([mean.clip(self._low, self._high), variance], axis=1)

    def view(self, slots: Slots, observation: Batch) -> Batch:
        return self._extended.show(observation, self._belief[slots])


class _Declarations(LayerOwner):
    """What it shows, for the layers and callbacks above."""

    layer: BeliefStateLayer

    @property
    def belief_entries(self) -> dict[str, tuple[str, str]]:
        """Where the observation shows mean and variance of hidden variables: ``{"energy": ("obs[9]", "obs[10]")}``."""
        return self.layer.entries

    @property
    def belief_space(self) -> spaces.Space[Any]:
        """What the estimate goes by: the observation space of one environment, below this layer."""
        return self.layer.spec.observation_space

    @property
    def belief_part(self) -> str | None:
        """Name of the trained part that it needs."""
        return self.layer.part


class BeliefState(_Declarations, LayerWrapper):
    """:class:`BeliefStateLayer` around a ``gymnasium.Env``."""

    layer_type = BeliefStateLayer


class VecBeliefState(_Declarations, VecLayerWrapper):
    """:class:`BeliefStateLayer` around SB3's ``VecEnv``."""

    layer_type = BeliefStateLayer


class VectorBeliefState(_Declarations, VectorLayerWrapper):
    """:class:`BeliefStateLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = BeliefStateLayer
