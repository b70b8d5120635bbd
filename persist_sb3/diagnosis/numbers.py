"""The numbers in an observation and in an info, by the paths with which a configuration names them as sources."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from persist_sb3.infos import Path
from persist_sb3.paths import write_path

#: Arrays with more entries (images, maps) are no internal variables.
MOST = 64
#: What wrappers write into an info, and no variable of the environment.
BOOKKEEPING = frozenset({"TimeLimit.truncated", "episode", "final_observation", "final_info", "terminal_observation"})


def numbers_of(observation: Any, info: Mapping[str, Any]) -> dict[str, float]:
    """
    :param observation: of one environment
    :param info: of the same moment
    :return: every number in them, by its path as :func:`~persist_sb3.paths.parse_path` reads it; what an image or an
        array of more than ``MOST`` entries holds is left out
    """
    found = {write_path("obs", path): value for path, value in _walk(observation, (), single=True)}
    for key, value in info.items():
        if isinstance(key, str) and key not in BOOKKEEPING:
            found |= {write_path("info", path): number for path, number in _walk(value, (key,), single=False)}
    return found


def _walk(value: Any, path: Path, *, single: bool) -> Iterator[tuple[Path, float]]:
    """
    :param value: anything
    :param path: to it
    :param single: whether an array of one number needs no index, as in an observation
    :return: path and value of every number in it
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            if isinstance(key, str):
                yield from _walk(part, (*path, key), single=single)
    elif isinstance(value, list | tuple):
        if len(value) <= MOST:
            for index, part in enumerate(value):
                yield from _walk(part, (*path, index), single=single)
    elif isinstance(value, bool | int | float | np.generic | np.ndarray):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or not 0 < array.size <= MOST:
            return
        if array.dtype == np.uint8 and array.ndim == 3:  # An image, however small.
            return
        if array.size == 1 and (single or array.ndim == 0):
            yield path, float(array.reshape(-1)[0])
            return
        for place in np.ndindex(array.shape):
            yield (*path, *place), float(array[place])
