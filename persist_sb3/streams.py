"""Seeded random streams, one an environment, drawn from in one batch."""

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """
    The output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).

    :param counter: any shape
    :return: 64 well-mixed bits each
    """
    z = (counter ^ (counter >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


class Streams:
    """
    ``n`` independent SplitMix64 generators. What one draws depends on its own seed and its own number of draws alone,
    so an environment sees the same noise whether it runs by itself or as one of many.

    :param num_envs: number of streams, ``n``
    :param salt: tells apart the streams of two users that are given the same seeds
    """

    def __init__(self, num_envs: int, salt: int = 0) -> None:
        self._salt = splitmix64(np.array([salt], dtype=np.uint64))
        self._counter = np.zeros(num_envs, dtype=np.uint64)
        self.seed(np.arange(num_envs), np.random.SeedSequence().generate_state(num_envs, np.uint64).astype(np.uint64))

    def seed(self, slots: NDArray[np.intp], seeds: NDArray[np.uint64]) -> None:
        """
        :param slots: ``(k,)``
        :param seeds: ``(k,)``
        """
        self._counter[slots] = splitmix64(splitmix64(seeds.astype(np.uint64)) + self._salt)

    def uniform(self, slots: NDArray[np.intp], count: int) -> NDArray[np.float64]:
        """
        :param slots: who draws, ``(k,)``
        :param count: draws each
        :return: uniform in ``[0, 1)``, ``(k, count)``
        """
        steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
        bits = splitmix64(self._counter[slots, None] + steps)
        self._counter[slots] += steps[-1]
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, slots: NDArray[np.intp], count: int) -> NDArray[np.float64]:
        """
        :param slots: who draws, ``(k,)``
        :param count: draws each
        :return: standard normal (Box-Muller), ``(k, count)``
        """
        radius, angle = np.split(self.uniform(slots, 2 * count), 2, axis=1)
        return np.sqrt(-2.0 * np.log1p(-radius)) * np.cos(2.0 * np.pi * angle)
