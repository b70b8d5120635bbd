"""What NumPy needs for small batches, made once: there every call costs more than its arithmetic."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

T = TypeVar("T")
Floats = NDArray[np.float32]

#: Up to so many rows, constants are repeated for each of them.
FEW = 32


def constant(value: float) -> Floats:
    """
    :param value: a number
    :return: the same for arithmetic with small arrays, ``()``: of Python's own numbers, and of NumPy's, each operation
        finds out anew what they are, which takes as long as to compute with them
    """
    return np.array(value, dtype=np.float32)


def few(rows: int) -> int:
    """
    :param rows: of a batch, ``n``
    :return: for how many constants are to be repeated. Small arrays of the same shape take half the time of those that
        NumPy has to stretch, so it is ``n``; from :data:`FEW` on it is 1, since there memory counts
    """
    return rows if rows <= FEW else 1


class Views:
    """
    NumPy views of tensors, taken anew when these lie elsewhere than before, as they do once they have moved into memory
    that processes share.

    :param tensors: on the CPU; they move together
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._place: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_tensors": self._tensors, "_place": None}

    def __call__(self) -> list[NDArray[Any]]:
        """
        :return: the arrays
        """
        place = self._tensors[0].data_ptr()
        if place != self._place:
            self._arrays = [tensor.detach().numpy() for tensor in self._tensors]
            self._place = place
        return self._arrays


class Prepared(Generic[T]):
    """
    What follows from a few small tensors, made anew when one has changed. They are compared by value: where processes
    share them, another one changes them.

    :param make: takes the tensors' arrays, and keeps none of them: they end when the tensors move; then how many rows
        it is made for, if that is told
    :param tensors: on the CPU; they move together
    """

    def __init__(self, make: Callable[..., T], *tensors: torch.Tensor) -> None:
        self._make = make
        self._views = Views(*tensors)
        self._known: list[bytes] = []
        self._made: dict[tuple[int, ...], T] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_views": self._views, "_known": [], "_made": {}}

    def __call__(self, *rows: int) -> T:
        """
        :param rows: how many it is for, if it depends on that, see :func:`few`
        :return: what was made of the tensors as they are
        """
        arrays = self._views()
        known = [array.tobytes() for array in arrays]
        if known != self._known:
            self._made.clear()
            self._known = known
        if rows not in self._made:
            self._made[rows] = self._make(*arrays, *rows)
        return self._made[rows]
