"""Batched observations of any structure: arrays, and dicts or tuples of arrays, all with the environments in front."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

# An array (n, ...), or a (nested) dict or tuple of them.
Batch = Any


def tree_map(function: Callable[..., Any], batch: Batch, *others: Batch) -> Batch:
    """
    :param function: called with one leaf of each tree
    :param batch: array, or dict or tuple of them
    :param others: trees of the same structure
    :return: the results, in the structure of ``batch``
    """
    if isinstance(batch, dict):
        if not others:
            return {key: tree_map(function, leaf) for key, leaf in batch.items()}
        return {key: tree_map(function, leaf, *[other[key] for other in others]) for key, leaf in batch.items()}
    if isinstance(batch, tuple):
        return tuple(tree_map(function, *leaves) for leaves in zip(batch, *others, strict=True))
    return function(batch, *others)


def add_batch_axis(value: Any) -> Batch:
    """
    :param value: the observation or action of one environment
    :return: the same with a leading axis of length one
    """
    return tree_map(lambda leaf: np.asarray(leaf)[None], value)


def first_row(batch: Batch) -> Any:
    """
    :param batch: a batch of one
    :return: what :func:`add_batch_axis` was given
    """
    return tree_map(lambda leaf: leaf[0], batch)


def take(batch: Batch, slots: NDArray[np.intp]) -> Batch:
    """
    :param batch: ``(n, ...)``
    :param slots: ``(k,)``
    :return: a copy of these rows, ``(k, ...)``
    """
    return tree_map(lambda leaf: leaf[slots], batch)


def with_rows(batch: Batch, slots: NDArray[np.intp], rows: Batch) -> Batch:
    """
    :param batch: ``(n, ...)``, left as it is
    :param slots: ``(k,)``
    :param rows: ``(k, ...)``
    :return: a copy of ``batch`` with ``rows`` in these slots
    """
    # Not a function in here, whose annotations would be evaluated anew each time.
    return tree_map(lambda leaf, new: _replace(leaf, slots, new), batch, rows)


def _replace(leaf: NDArray[Any], slots: NDArray[np.intp], new: NDArray[Any]) -> NDArray[Any]:
    copy = leaf.copy()
    copy[slots] = new
    return copy


def stack(rows: list[Any]) -> Batch:
    """
    :param rows: observations of ``k`` environments, of one structure
    :return: ``(k, ...)``
    """
    # As np.stack, in a third of its time.
    return tree_map(lambda *leaves: np.array(leaves), *rows)


def flatten(space: spaces.Space[Any], batch: Batch) -> NDArray[Any]:
    """
    The batched ``gymnasium.spaces.flatten``: the same columns in the same order.

    :param space: space of one environment
    :param batch: ``(n, ...)``
    :return: ``(n, spaces.flatdim(space))``
    :raises TypeError: if the space has no fixed size
    """
    # Not a union of the two, which would be made anew each time.
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return np.asarray(batch).reshape(len(batch), -1)
    if isinstance(space, spaces.Discrete):
        # SB3's DictReplayBuffer turns such entries into columns, in the very dict that the environment returned.
        index = np.asarray(batch).reshape(len(batch))
        return _codes(int(space.n)).take(index - space.start if space.start else index, axis=0)
    if isinstance(space, spaces.MultiDiscrete):
        values = np.reshape(batch, (len(batch), -1)) - space.start.reshape(-1)
        return np.concatenate(
            [_codes(size)[column] for size, column in zip(space.nvec.reshape(-1), values.T, strict=True)], axis=1
        )
    if isinstance(space, spaces.Dict):
        return np.concatenate([flatten(inner, batch[key]) for key, inner in space.spaces.items()], axis=1)
    if isinstance(space, spaces.Tuple):
        return np.concatenate([flatten(inner, part) for inner, part in zip(space.spaces, batch, strict=True)], axis=1)
    raise TypeError(
        f"{type(space).__name__} observations have no fixed size and cannot be flattened: wrap the environment so that "
        "it returns a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    )


@cache
def _codes(n: int) -> NDArray[np.float32]:
    return np.eye(n, dtype=np.float32)


def unflatten(space: spaces.Space[Any], flat: NDArray[Any]) -> Batch:
    """
    The reverse of :func:`flatten`; a one-hot code need not be exact, its greatest entry counts.

    :param space: space of one environment, of a fixed size
    :param flat: ``(n, spaces.flatdim(space))``
    :return: ``(n, ...)``
    """
    if isinstance(space, spaces.Discrete):
        return (flat.argmax(axis=1) + space.start).astype(space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        codes = np.split(flat, np.cumsum(space.nvec.reshape(-1))[:-1], axis=1)
        values = np.stack([code.argmax(axis=1) for code in codes], axis=1)
        return (values.reshape(-1, *space.shape) + space.start).astype(space.dtype)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        parts = np.split(flat, np.cumsum([spaces.flatdim(part) for part in inner])[:-1], axis=1)
        batches = [unflatten(part, columns) for part, columns in zip(inner, parts, strict=True)]
        return dict(zip(space.spaces, batches, strict=True)) if isinstance(space, spaces.Dict) else tuple(batches)
    rounded = np.rint(flat) if np.issubdtype(space.dtype, np.integer) else flat
    return rounded.reshape(-1, *(space.shape or ())).astype(space.dtype)


def surely_finite(array: NDArray[Any]) -> bool:
    """
    :param array: floats
    :return: False if one is not finite, or their squares are too large to be added up. That is all right, and is left
        to a closer look: the sum costs less than looking at every number
    """
    return math.isfinite(np.vdot(array, array))
