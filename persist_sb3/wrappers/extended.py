"""What a layer shows the agent beside the observation."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, flatten


class ExtendedObservation:
    """
    Shows ``k`` numbers beside an observation: a Dict gets a key, a Box grows by ``k`` entries, and any other space is
    flattened (in the order of ``gymnasium.spaces.flatten``) and grows by ``k`` entries.

    :param layer: name of who shows them
    :param inner: the observation space of one environment, below the layer
    :param key: of the numbers in a Dict
    :param low: their least values, ``(k,)``
    :param high: their greatest values, ``(k,)``
    :raises RuntimeError: if the key is taken
    :raises TypeError: if the space has no fixed size
    """

    def __init__(
        self, layer: str, inner: spaces.Space[Any], key: str, low: NDArray[np.floating], high: NDArray[np.floating]
    ) -> None:
        self._inner = inner
        self._key = key
        count, where, first = len(low), f"obs.{key}", 0
        if isinstance(inner, spaces.Dict):
            if key in inner.spaces:
                raise RuntimeError(f"the observation has a key {key!r} already: use one {layer} only")
            extra = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
            space: spaces.Space[Any] = spaces.Dict({**inner.spaces, key: extra})
        else:
            flat = spaces.flatten_space(inner)
            if not isinstance(flat, spaces.Box):
                raise TypeError(f"{layer} cannot flatten {inner}: wrap the environment so that it has a fixed size")
            where, first = "obs", spaces.flatdim(inner)
            low, high = (np.append(*pair).astype(np.float32) for pair in ((flat.low, low), (flat.high, high)))
            space = spaces.Box(low, high, dtype=np.float32)
        #: Of what is shown, for one environment.
        self.space = space
        #: Where that shows each number, such as ``"obs[9]"``.
        self.entries = [f"{where}[{first + i}]" for i in range(count)]

    def show(self, observation: Batch, numbers: NDArray[np.floating]) -> Batch:
        """
        :param observation: ``(n, ...)``
        :param numbers: ``(n, k)``
        :return: both, ``(n, ...)``
        """
        if isinstance(observation, dict):
            return {**observation, self._key: numbers.astype(np.float32, copy=False)}
        flat = flatten(self._inner, observation)
        return np.concatenate([flat, numbers], axis=1, dtype=np.float32)
