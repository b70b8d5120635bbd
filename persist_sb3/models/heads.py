"""Which kind of distribution each entry of a prediction has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Columns = NDArray[np.intp]


@dataclass(frozen=True)
class Heads:
    """
    The columns of a flat vector of ``m`` numbers, by kind.

    :param numeric: columns that are numbers: Gaussian, ``(g,)``
    :param low: least value of each, ``(g,)``; ``-inf`` where there is none
    :param high: greatest value, ``(g,)``
    :param one_hot: columns of one-hot codes: categorical, group after group, ``(c,)``
    :param sizes: of these groups, their sum is ``c``
    :param binary: columns that are 0 or 1 independently: Bernoulli, ``(b,)``
    """

    numeric: Columns
    low: Floats
    high: Floats
    one_hot: Columns
    sizes: tuple[int, ...]
    binary: Columns

    @classmethod
    def of_space(cls, space: spaces.Space[Any]) -> "Heads":
        """
        :param space: of a fixed size
        :return: the heads of its flattened samples
        """
        numeric: list[int] = []
        one_hot: list[int] = []
        binary: list[int] = []
        low, high, sizes = [np.empty(0)], [np.empty(0)], list[int]()
        offset = 0
        for leaf in _leaves(space):
            columns = range(offset, offset + spaces.flatdim(leaf))
            offset = columns.stop
            if isinstance(leaf, spaces.Box):
                numeric += columns
                low.append(leaf.low.reshape(-1))
                high.append(leaf.high.reshape(-1))
            elif isinstance(leaf, spaces.MultiBinary):
                binary += columns
            else:
                one_hot += columns
                sizes += [int(leaf.n)] if isinstance(leaf, spaces.Discrete) else leaf.nvec.reshape(-1).tolist()
        return cls(
            np.array(numeric, dtype=np.intp),
            np.concatenate(low).astype(np.float32),
            np.concatenate(high).astype(np.float32),
            np.array(one_hot, dtype=np.intp),
            tuple(sizes),
            np.array(binary, dtype=np.intp),
        )

    @classmethod
    def of_numbers(cls, low: NDArray[np.floating[Any]], high: NDArray[np.floating[Any]]) -> "Heads":
        """
        :param low: least value of each number, ``(g,)``
        :param high: greatest value, ``(g,)``
        :return: the heads of a vector of numbers
        """
        nothing = np.empty(0, dtype=np.intp)
        return cls(np.arange(len(low)), low.astype(np.float32), high.astype(np.float32), nothing, (), nothing)

    def __add__(self, other: "Heads") -> "Heads":
        """
        :param other: of a second vector
        :return: the heads of both in a row
        """
        return Heads(
            np.concatenate([self.numeric, self.width + other.numeric]),
            np.concatenate([self.low, other.low]),
            np.concatenate([self.high, other.high]),
            np.concatenate([self.one_hot, self.width + other.one_hot]),
            self.sizes + other.sizes,
            np.concatenate([self.binary, self.width + other.binary]),
        )

    @property
    def width(self) -> int:
        """Length of the vector, ``m``."""
        return len(self.numeric) + len(self.one_hot) + len(self.binary)

    @property
    def outputs(self) -> int:
        """Numbers that describe its distribution: two a Gaussian, one logit for each other column."""
        return self.width + len(self.numeric)

    @property
    def entries(self) -> int:
        """Number of distributions: each number, group and binary column is one."""
        return len(self.numeric) + len(self.sizes) + len(self.binary)


def as_slice(columns: Columns) -> slice | Columns:
    """
    :param columns: some of a vector's
    :return: the same, for indexing without a copy if they follow one another
    """
    start = int(columns[0]) if len(columns) else 0
    adjacent = np.array_equal(columns, np.arange(start, start + len(columns)))
    return slice(start, start + len(columns)) if adjacent else columns


def _leaves(space: spaces.Space[Any]) -> Iterator[Any]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for inner in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _leaves(inner)
    else:
        yield space
