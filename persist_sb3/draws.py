"""Random numbers by key: what a row draws does not depend on the other rows of its batch."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from persist_sb3.streams import GOLDEN, splitmix64

Floats = NDArray[np.float32]


class Noise(Protocol):
    """What imagination needs of a random generator. ``numpy.random.Generator`` has it, and so has :class:`Draws`."""

    def random(self, size: Any, dtype: Any = ..., /) -> Any:
        """
        :param size: of the result, rows in front
        :param dtype: of the result
        :return: uniform in ``[0, 1)``
        """

    def standard_normal(self, size: Any, dtype: Any = ..., /) -> Any:
        """
        :param size: of the result, rows in front
        :param dtype: of the result
        :return: standard normal
        """


class Draws:
    """
    A counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) for each row of a
    batch, on SplitMix64. Rows with the same key draw the same, which compares actions under the same chance.

    :param key: one a row, ``(r,)``
    """

    def __init__(self, key: NDArray[np.uint64]) -> None:
        self._counter = splitmix64(key)

    @classmethod
    def split(cls, key: NDArray[np.uint64], count: int) -> "Draws":
        """
        :param key: ``(r,)``
        :param count: rows to make of each
        :return: for ``r * count`` rows, those of a key side by side
        """
        lanes = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
        return cls((splitmix64(key)[:, None] + lanes).reshape(-1))

    def _halves(self, size: int | Sequence[int], count: int) -> NDArray[np.uint32]:
        """
        :param size: of the result, rows in front
        :param count: halves of words a row
        :return: 32 random bits each, ``(r, count)``
        :raises ValueError: if ``size`` has another number of rows
        """
        rows = size if isinstance(size, int) else size[0]
        if rows != len(self._counter):
            raise ValueError(f"{rows} rows draw from a generator of {len(self._counter)}")
        words = (count + 1) // 2
        steps = np.arange(1, words + 1, dtype=np.uint64) * GOLDEN
        bits = splitmix64(self._counter[:, None] + steps)
        self._counter += steps[-1]
        return bits.view(np.uint32)[:, :count]

    def random(self, size: int | Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
        """
        :param size: of the result, rows in front
        :param dtype: of the result
        :return: uniform in ``[0, 1)``, in steps of ``2**-24``
        """
        count = _width(size)
        uniform = (self._halves(size, count) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
        return uniform.reshape(size).astype(dtype, copy=False)

    def standard_normal(self, size: int | Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
        """
        :param size: of the result, rows in front
        :param dtype: of the result
        :return: standard normal (Box & Muller, 1958), in single precision
        """
        count = _width(size)
        half = (count + 1) // 2
        bits = self._halves(size, 2 * half) >> np.uint32(8)
        uniform = bits.astype(np.float32) * np.float32(2.0**-24)
        radius = np.sqrt(np.float32(-2.0) * np.log1p(-uniform[:, :half]))
        angle = np.float32(2.0 * math.pi) * uniform[:, half:]
        normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return normal[:, :count].reshape(size).astype(dtype, copy=False)


def _width(size: int | Sequence[int]) -> int:
    """
    :param size: of a result, rows in front
    :return: numbers a row
    """
    return 1 if isinstance(size, int) else math.prod(size[1:])


def hash_rows(rows: Floats) -> NDArray[np.uint64]:
    """
    :param rows: ``(r, D)``
    :return: a hash of each, ``(r,)``: multilinear, on the bits of its numbers (Lemire & Kaser, "Strongly universal
        string hashing is fast", The Computer Journal, 2014)
    """
    bits = np.ascontiguousarray(rows, dtype=np.float32).view(np.uint32).astype(np.uint64)
    factors = splitmix64(np.arange(1, rows.shape[1] + 1, dtype=np.uint64) * GOLDEN)
    return (bits * factors).sum(axis=1, dtype=np.uint64)
