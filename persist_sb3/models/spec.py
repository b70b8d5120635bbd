"""What a model is about: which observations, internal variables, constraints and actions, as flat arrays."""

from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, flatten
from persist_sb3.viability import ViabilitySet

Floats = NDArray[np.float32]

#: Joint actions of a MultiDiscrete that may be enumerated.
MAX_ACTIONS = 256


class StateSpec:
    """
    The state ``s = [o, x]`` and the actions of one environment, and how models see them: observation ``o`` flattened in
    the order of ``gymnasium.spaces.flatten``, then the internal variables ``x``; actions as one-hot vectors (Discrete,
    MultiDiscrete, MultiBinary) or scaled to ``[-1, 1]`` (Box).

    :param observation_space: of one environment, with ``VecNormalize`` left out
    :param action_space: of one environment: Discrete, MultiDiscrete, MultiBinary, or a bounded Box
    :param viability: constraints on the internal variables
    :raises TypeError: if the observation is an image, or a space cannot be flattened
    :raises ValueError: if a Box action is unbounded
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], viability: ViabilitySet
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.viability = viability
        _refuse_images(observation_space, "observation")
        try:
            self.observation_dim = spaces.flatdim(observation_space)
        except (NotImplementedError, ValueError) as error:
            raise TypeError(f"models need observations of a fixed size, and {observation_space} has none") from error
        self.internal_dim = len(viability.dims)
        #: Length of ``s``, ``D``.
        self.state_dim = self.observation_dim + self.internal_dim
        self.continuous = isinstance(action_space, spaces.Box)
        if isinstance(action_space, spaces.Box):
            if not action_space.is_bounded():
                raise ValueError(f"models need bounded actions, and {action_space} is not: use RescaleAction first")
            low, high = action_space.low.reshape(-1), action_space.high.reshape(-1)
            self._centre = ((high + low) / 2).astype(np.float32)
            self._half = ((high - low) / 2).astype(np.float32)
        elif not isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise TypeError(f"actions must be Discrete, MultiDiscrete, MultiBinary or Box, not {action_space}")
        #: Length of an encoded action, ``A``.
        self.action_dim = spaces.flatdim(action_space)

    def encode(self, observation: Batch, internal: NDArray[Any]) -> Floats:
        """
        :param observation: ``(n, ...)``
        :param internal: ``(n, d)``
        :return: ``s``, ``(n, D)``
        """
        flat = flatten(self.observation_space, observation)
        return np.concatenate([flat, internal], axis=1, dtype=np.float32, casting="unsafe")

    def encode_action(self, action: NDArray[Any]) -> Floats:
        """
        :param action: in the units of the action space, ``(n, ...)``
        :return: ``(n, A)``
        """
        flat = flatten(self.action_space, action)
        if self.continuous:
            return ((flat - self._centre) / self._half).astype(np.float32)
        return flat.astype(np.float32, copy=False)

    def decode_action(self, encoded: NDArray[Any]) -> NDArray[Any]:
        """
        :param encoded: of Box actions, ``(n, A)``; clipped to ``[-1, 1]``
        :return: in the units of the action space, ``(n, ...)``
        :raises TypeError: if the actions are not Box
        """
        if not isinstance(self.action_space, spaces.Box):
            raise TypeError(f"only Box actions are decoded, not those of {self.action_space}: index actions instead")
        flat = self._centre + self._half * np.clip(encoded, -1.0, 1.0)
        return flat.reshape(-1, *self.action_space.shape).astype(self.action_space.dtype)

    @cached_property
    def actions(self) -> NDArray[Any]:
        """
        Every action, in the units of the action space, ``(k, ...)``.

        :raises ValueError: if they are more than :data:`MAX_ACTIONS`, or continuous
        """
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            sizes, start = [int(space.n)], np.array(space.start)
        elif isinstance(space, spaces.MultiDiscrete):
            sizes, start = space.nvec.reshape(-1).tolist(), space.start
        elif isinstance(space, spaces.MultiBinary):
            sizes, start = [2] * spaces.flatdim(space), np.array(0)
        else:
            raise ValueError(f"the actions of {space} cannot be enumerated")
        if np.prod(sizes, dtype=np.float64) > MAX_ACTIONS:
            raise ValueError(f"{space} has more than the {MAX_ACTIONS} joint actions that can be enumerated")
        rows = np.array(list(product(*map(range, sizes))))
        return (rows.reshape(-1, *(space.shape or ())) + start).astype(space.dtype)

    def index(self, action: NDArray[Any]) -> NDArray[np.intp]:
        """
        :param action: enumerable actions, ``(n, ...)``
        :return: their rows in :attr:`actions`, ``(n,)``
        """
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return np.asarray(action).reshape(-1).astype(np.intp) - int(space.start)
        values = np.reshape(action, (len(action), -1)).astype(np.intp)
        if isinstance(space, spaces.MultiDiscrete):
            values = values - space.start.reshape(-1)
            return np.ravel_multi_index(tuple(values.T), tuple(space.nvec.reshape(-1)))
        return np.ravel_multi_index(tuple(values.T), (2,) * values.shape[1])

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What another spec must share for a model to serve both: shapes, names and constraints, in plain values."""
        return {
            "observation": _describe(self.observation_space),
            "action": _describe(self.action_space),
            "internal": list(self.viability.dims),
            "constraints": list(self.viability.names),
        }


def _describe(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        return "{" + ", ".join(f"{key}: {_describe(inner)}" for key, inner in space.spaces.items()) + "}"
    if isinstance(space, spaces.Tuple):
        return "(" + ", ".join(map(_describe, space.spaces)) + ")"
    if isinstance(space, spaces.Box):
        return f"Box{list(space.shape)}"
    return str(space)


def _refuse_images(space: spaces.Space[Any], path: str) -> None:
    inner = space.spaces.items() if isinstance(space, spaces.Dict) else []
    if isinstance(space, spaces.Tuple):
        inner = [(str(index), part) for index, part in enumerate(space.spaces)]
    for key, part in inner:
        _refuse_images(part, f"{path}.{key}")
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) >= 2:
        raise TypeError(
            f"{path} is an image of shape {space.shape}: these models read vectors. Let a wrapper turn it into features"
        )
