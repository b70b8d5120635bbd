"""Setpoints that change from episode to episode, so that one agent learns to keep any of them."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, with_rows
from persist_sb3.infos import Infos
from persist_sb3.setpoint import SetpointInForce, setpoint_names
from persist_sb3.state import last_loaded
from persist_sb3.streams import Streams
from persist_sb3.viability import unknown_name
from persist_sb3.wrappers.adapters import LayerOwner, LayerWrapper, VecLayerWrapper, VectorLayerWrapper
from persist_sb3.wrappers.extended import ExtendedObservation
from persist_sb3.wrappers.layer import Layer, Lookup, Step

KEY, WEIGHTS = "setpoint", "setpoint_weights"

Floats = NDArray[np.float64]


class RandomSetpointLayer(Layer):
    """
    Draws the setpoints ``mu`` of some internal variables anew for every episode, shows them to the agent, and publishes
    all setpoints as ``info["setpoint"]``, ``(d,)``, at every reset and step. A ``HomeostatReward`` around it rewards by
    these. The agent so becomes one for any setpoint in the ranges (a context-conditioned policy; universal value
    function approximators, Schaul et al., ICML 2015): :meth:`set_setpoint` chooses one at test time.

    The observation grows by one entry for each variable with a range: a Dict gets a key ``setpoint``, a Box entries at
    its end, and any other space is flattened (in the order of ``gymnasium.spaces.flatten``) first.

    With ``w_ranges`` it draws weights ``w`` of the homeostat likewise, shows them after the setpoints, and publishes
    all weights as ``info["setpoint_weights"]``, ``(d,)``. They are called ``w/<variable>`` wherever they have a name.

    In evaluation, where callbacks bind the layers with ``training=False``, setpoints (and weights) are those declared,
    so that scores compare; or, as in a replay, those that a :class:`~persist_sb3.callbacks.SetpointCallback` has found.

    :param ranges: least and greatest setpoint, by name of the variable; within the constraints
    :param w_ranges: least and greatest weight, by name of the variable; at least 0
    :param w: the declared weights, where some are drawn; one a variable, within their ranges. Default: 1 each
    :raises ValueError: if there is no range, or one is empty or below 0, or ``w`` is given and no weight is drawn
    :raises RuntimeError: if a range leaves the constraints, or a declared weight its range
    """

    def __init__(
        self,
        ranges: Mapping[str, Sequence[float]],
        w_ranges: Mapping[str, Sequence[float]] | None = None,
        w: Sequence[float] | None = None,
    ) -> None:
        if not ranges and not w_ranges:
            raise ValueError(
                "ranges={} leaves no setpoint to draw: give one variable a range, as {'energy': [0.5, 0.9]}"
            )
        if w is not None and not w_ranges:
            raise ValueError(f"w={list(w)} without w_ranges: nothing draws weights here, so give w to HomeostatReward")
        self._mu_ranges, self._w_ranges = _checked("ranges", ranges), _checked("w_ranges", w_ranges or {})
        for name, (least, _) in self._w_ranges.items():
            if least < 0.0:
                raise ValueError(f"w_ranges[{name!r}] begins at {least:g}: a weight is at least 0")
        self._w = w
        #: Least and greatest of all that is drawn, by name.
        self.ranges = self._mu_ranges | {f"w/{name}": bounds for name, bounds in self._w_ranges.items()}

    @property
    def views(self) -> bool:
        return True

    def attach(
        self, num_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lookup: Lookup
    ) -> None:
        super().attach(num_envs, observation_space, action_space, lookup)
        viability = lookup("viability")
        if viability.mu is None:
            raise RuntimeError("RandomSetpoint needs setpoints to begin with: give InternalState mu=[...]")
        dims = viability.dims
        for key, given in (("ranges", self._mu_ranges), ("w_ranges", self._w_ranges)):
            for name in given:
                if name not in dims:
                    raise RuntimeError(f"RandomSetpoint({key}=...): {unknown_name(name, dims)}")
        floor, ceiling = viability.box()
        for name, bounds in self._mu_ranges.items():
            column = dims.index(name)
            if not floor[column] <= bounds[0] < bounds[1] <= ceiling[column]:
                raise RuntimeError(
                    f"the setpoints of {name!r}, {list(bounds)}, leave its constraints, [{floor[column]:g}, "
                    f"{ceiling[column]:g}]: the agent would be paid to violate them"
                )
        self._count = len(dims)
        self._names = setpoint_names(dims, bool(self._w_ranges))
        # Setpoints, and after them the weights, if any are drawn.
        self._declared: Floats = np.append(viability.mu, self._weights(dims)) if self._w_ranges else viability.mu
        self._columns = np.array([self._names.index(name) for name in self.ranges], dtype=np.intp)
        self._low, self._high = self._declared.copy(), self._declared.copy()
        self._low[self._columns], self._high[self._columns] = np.array(list(self.ranges.values())).T
        # The declared setpoint may lie outside the range, and be shown in evaluation.
        low, high = (
            extreme(bound, self._declared)[self._columns]
            for extreme, bound in ((np.minimum, self._low), (np.maximum, self._high))
        )
        self._extended = ExtendedObservation("RandomSetpoint", observation_space, KEY, low, high)
        self.observation_space = self._extended.space
        self._streams = Streams(num_envs, salt=zlib.crc32(type(self).__name__.encode()))
        self._chosen: Floats | None = None
        self._bound = False
        self._draws = True
        self._search: SetpointInForce | None = None
        #: The setpoints of the episodes in progress, and after them the weights, ``(n, d)`` or ``(n, 2 d)``.
        self.setpoints = np.tile(self._declared, (num_envs, 1))

    def _weights(self, dims: Sequence[str]) -> Floats:
        """
        :param dims: the internal variables
        :return: their declared weights, ``(d,)``
        :raises RuntimeError: if one is not what may be drawn: in evaluation it would be new to the agent
        """
        w = np.ones(len(dims)) if self._w is None else np.asarray(self._w, dtype=np.float64)
        if w.shape != (len(dims),):
            raise RuntimeError(f"RandomSetpoint: w has {w.size} entries for {len(dims)} variables {list(dims)}")
        for name, (least, greatest) in self._w_ranges.items():
            own = w[dims.index(name)]
            if not least <= own <= greatest:
                raise RuntimeError(
                    f"the declared weight of {name!r}, {own:g}, lies outside of w_ranges, [{least:g}, {greatest:g}]: "
                    "give RandomSetpoint w=[...] within them"
                )
        return w

    @property
    def setpoint_range(self) -> tuple[Floats, Floats]:
        """Least and greatest setpoint of every variable, ``(d,)`` each."""
        return self._low[: self._count], self._high[: self._count]

    @property
    def weight_range(self) -> tuple[Floats, Floats] | None:
        """Least and greatest weight of every variable, ``(d,)`` each; None if no weights are drawn."""
        return (self._low[self._count :], self._high[self._count :]) if self._w_ranges else None

    def seed(self, slots: NDArray[np.intp], seeds: NDArray[np.uint64]) -> None:
        self._streams.seed(slots, seeds)

    def bind(self, bundle: Mapping[str, Any], *, training: bool) -> None:
        self._bound = True
        self._draws = training
        self._search = bundle.get("setpoint")

    def set_setpoint(self, setpoint: Mapping[str, float] | None) -> None:
        """
        Choose setpoints, and weights, for all episodes that begin from now on.

        :param setpoint: by name, for what has a range, within it; the others stay as declared. None: as before the
            first choice, drawn, or in evaluation those declared
        :raises ValueError: if a variable has no range, or the setpoint lies outside
        """
        if setpoint is None:
            self._chosen = None
            return
        chosen = self._declared.copy()
        for name, value in setpoint.items():
            if name not in self.ranges:
                raise ValueError(f"RandomSetpoint draws no setpoint of {name!r}, only of {', '.join(self.ranges)}")
            low, high = self.ranges[name]
            if not low <= value <= high:
                raise ValueError(f"setpoint of {name!r} is {value}, outside of what was trained, [{low:g}, {high:g}]")
            chosen[self._names.index(name)] = value
        self._chosen = chosen

    def _fixed(self) -> Floats | None:
        """
        :return: setpoints (and weights) of an episode that begins now, ``(d,)`` or ``(2 d,)``; None if they are drawn
        """
        if self._chosen is not None:
            return self._chosen
        if not self._bound:
            loaded = last_loaded()
            found = None if loaded is None else loaded.pending.get("setpoint")
            if (
                found is not None
                and not torch.isnan(found["chosen"]).any()
                and len(found["chosen"]) == len(self._names)
            ):
                replayed: Floats = found["chosen"].numpy()
                return replayed
        if self._draws:
            return None
        known = None if self._search is None else self._search.known()
        return self._declared if known is None else known

    def begin(self, slots: NDArray[np.intp], observation: Batch, infos: Infos) -> None:
        # Drawn whether it is needed or not, so that a choice changes nothing afterwards.
        uniform = self._streams.uniform(slots, 1 + len(self._columns))
        fixed = self._fixed()
        setpoints = np.tile(self._declared if fixed is None else fixed, (len(slots), 1))
        if fixed is None:
            low, high = self._low[self._columns], self._high[self._columns]
            setpoints[:, self._columns] = low + uniform[:, 1:] * (high - low)
            if self._search is not None:
                setpoints[uniform[:, 0] < self._search.share] = self._search.candidate.numpy()
        # A new array: the rows of the old one were published.
        self.setpoints = with_rows(self.setpoints, slots, setpoints)
        self._publish(infos, slots, setpoints)

    def _publish(self, infos: Infos, slots: NDArray[np.intp], setpoints: Floats) -> None:
        infos.publish(KEY, slots, setpoints[:, : self._count])
        if self._w_ranges:
            infos.publish(WEIGHTS, slots, setpoints[:, self._count :])

    def after(self, step: Step) -> Floats:
        self._publish(step.infos, self.everyone, self.setpoints)
        return step.reward

    def view(self, slots: NDArray[np.intp], observation: Batch) -> Batch:
        return self._extended.show(observation, self.setpoints[slots][:, self._columns])


def _checked(key: str, ranges: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """
    :param key: name of the parameter
    :param ranges: its value
    :return: the same
    :raises ValueError: if a range is empty
    """
    for name, bounds in ranges.items():
        if len(bounds) != 2 or not bounds[0] < bounds[1] or not np.isfinite(bounds).all():
            raise ValueError(f"{key}[{name!r}]={bounds!r} must be [least, greatest], finite and in this order")
    return {name: (float(low), float(high)) for name, (low, high) in ranges.items()}


class _Setpoints(LayerOwner):
    """What the three forms of RandomSetpoint say and do."""

    layer: RandomSetpointLayer

    @property
    def setpoint_range(self) -> tuple[Floats, Floats]:
        """Least and greatest setpoint of every variable, ``(d,)`` each."""
        return self.layer.setpoint_range

    @property
    def weight_range(self) -> tuple[Floats, Floats] | None:
        """Least and greatest weight of every variable, ``(d,)`` each; None if no weights are drawn."""
        return self.layer.weight_range

    def set_setpoint(self, setpoint: Mapping[str, float] | None) -> None:
        """
        Choose setpoints for all episodes that begin from now on, see :meth:`RandomSetpointLayer.set_setpoint`.

        :param setpoint: by name; None: drawn again, or in evaluation those declared
        :raises ValueError: if a variable has no range, or the setpoint lies outside
        """
        self.layer.set_setpoint(setpoint)


class RandomSetpoint(_Setpoints, LayerWrapper):
    """:class:`RandomSetpointLayer` around a ``gymnasium.Env``."""

    layer_type = RandomSetpointLayer


class VecRandomSetpoint(_Setpoints, VecLayerWrapper):
    """:class:`RandomSetpointLayer` around SB3's ``VecEnv``."""

    layer_type = RandomSetpointLayer


class VectorRandomSetpoint(_Setpoints, VectorLayerWrapper):
    """:class:`RandomSetpointLayer` around a ``gymnasium.vector.VectorEnv``."""

    layer_type = RandomSetpointLayer
