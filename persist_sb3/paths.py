"""Where a number is, in an info or in an observation: ``info.energy``, ``obs.battery[1]``."""

import difflib
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch
from persist_sb3.grammar import GrammarError, Scanner
from persist_sb3.infos import Path

ROOTS = ("info", "obs")
TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<index>[0-9]+)"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<quoted>'[^']*'|\"[^\"]*\")"
    r"|(?P<symbol>[.\[\]])"
)


class PathSyntaxError(GrammarError):
    """A source that does not follow the grammar of :func:`parse_path`."""

    subject = "source"


class SourceError(RuntimeError):
    """A source that does not fit the environment: nothing is where it says, or what is there is not one number."""


def parse_path(text: str) -> tuple[str, Path]:
    """
    Read ``info.energy``, ``info.internal[0]``, ``info['odd key']``, ``obs``, ``obs[2]``, ``obs.battery[1]``: ``info``
    or ``obs``, then any number of ``.key``, ``['key']`` and ``[index]``, indices counted from 0.

    :param text: the source
    :return: ``"info"`` or ``"obs"``, and the keys and indices that follow
    :raises PathSyntaxError: if it is malformed
    """
    scanner = Scanner(text, TOKEN, PathSyntaxError)
    root = scanner.take(*ROOTS) or scanner.fail("'info' or 'obs', as in 'info.battery'")
    path: list[str | int] = []
    while scanner.next.kind != "end":
        if scanner.take("."):
            key = scanner.take_kind("name") or scanner.fail("a key")
            path.append(key.text)
        elif scanner.take("["):
            if index := scanner.take_kind("index"):
                path.append(int(index.text))
            else:
                quoted = scanner.take_kind("quoted") or scanner.fail("an index (from 0) or a quoted key")
                path.append(quoted.text[1:-1])
            scanner.expect("]")
        else:
            scanner.fail("'.key', '[index]' or the end")
    if root.text == "info" and not path:
        scanner.fail("'.key': an info has many entries")
    return root.text, tuple(path)


def write_path(root: str, path: Path) -> str:
    """
    :param root: ``"info"`` or ``"obs"``
    :param path: keys and indices, outermost first
    :return: the text that :func:`parse_path` reads as these
    """
    return root + "".join(
        f".{part}" if isinstance(part, str) and part.isidentifier() else f"[{part!r}]" for part in path
    )


@dataclass(frozen=True)
class ObservationEntry:
    """
    One number of an observation.

    :param keys: the way through Dicts and Tuples to the array that holds it
    :param index: where it is in the array
    """

    keys: Path
    index: tuple[int, ...]

    @property
    def text(self) -> str:
        """The path as :func:`parse_path` reads it."""
        return write_path("obs", (*self.keys, *self.index))

    def read(self, observation: Batch) -> NDArray[Any]:
        """
        :param observation: ``(n, ...)``, or a dict or tuple of such
        :return: this entry of each, ``(n,)``
        """
        for key in self.keys:
            observation = observation[key]
        column: NDArray[Any] = observation[(slice(None), *self.index)]
        return column

    def write(self, observation: Batch, column: NDArray[Any]) -> Batch:
        """
        :param observation: ``(n, ...)``, or a dict or tuple of such, left as it is
        :param column: ``(n,)``
        :return: a copy with this entry replaced in each
        """
        return self._write(observation, column, self.keys)

    def _write(self, observation: Batch, column: NDArray[Any], keys: Path) -> Batch:
        if not keys:
            copy = observation.copy()
            copy[(slice(None), *self.index)] = column
            return copy
        inner = self._write(observation[keys[0]], column, keys[1:])
        if isinstance(observation, dict):
            return {**observation, keys[0]: inner}
        return tuple(inner if index == keys[0] else part for index, part in enumerate(observation))

    def columns(self, space: spaces.Space[Any]) -> list[int]:
        """
        :param space: the observation's space
        :return: where the entry is in the flattened observation: one column, or those of its one-hot code
        """
        offset = 0
        for key in self.keys:
            parts: Any = space.spaces  # type: ignore[attr-defined]
            for name, part in parts.items() if isinstance(space, spaces.Dict) else enumerate(parts):
                if name == key:
                    space = part
                    break
                offset += spaces.flatdim(part)
        if isinstance(space, spaces.Discrete):
            return list(range(offset, offset + int(space.n)))
        place = int(np.ravel_multi_index(self.index, space.shape or ())) if self.index else 0
        if isinstance(space, spaces.MultiDiscrete):
            sizes = space.nvec.reshape(-1)
            offset += int(sizes[:place].sum())
            return list(range(offset, offset + int(sizes[place])))
        return [offset + place]

    def bounds(self, space: spaces.Space[Any]) -> tuple[float, float]:
        """
        :param space: the observation's space
        :return: least and greatest value that this entry can take there
        """
        for key in self.keys:
            space = space[key]  # type: ignore[index]
        if isinstance(space, spaces.Box):
            return float(space.low[self.index]), float(space.high[self.index])
        if isinstance(space, spaces.Discrete):
            return float(space.start), float(space.start + space.n - 1)
        if isinstance(space, spaces.MultiDiscrete):
            start = float(space.start[self.index])
            return start, start + float(space.nvec[self.index]) - 1.0
        return 0.0, 1.0


def locate(path: Path, space: spaces.Space[Any]) -> ObservationEntry:
    """
    :param path: keys and indices into an observation
    :param space: the observation's space
    :return: the number that is there. An array of a single number needs no index
    :raises SourceError: if there is none, saying what there is instead
    """
    depth = 0
    while isinstance(space, spaces.Dict | spaces.Tuple):
        here = write_path("obs", path[:depth])
        parts: Any = space.spaces
        choices = list(parts) if isinstance(space, spaces.Dict) else list(range(len(parts)))
        known = ", ".join(write_path(here, (choice,)) for choice in choices)
        if depth == len(path):
            raise SourceError(f"'{here}' is a {type(space).__name__}, not a number: name one of {known}")
        if path[depth] not in choices:
            nearest = difflib.get_close_matches(str(path[depth]), [str(choice) for choice in choices], n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise SourceError(f"'{write_path('obs', path)}': {here} has no {path[depth]!r}{hint}; it has {known}")
        space = parts[path[depth]]
        depth += 1
    keys, index = path[:depth], path[depth:]
    here = write_path("obs", keys)
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        raise SourceError(f"'{here}' is a {type(space).__name__}, which holds no number that could be read")
    shape = tuple(space.shape or ())
    if not index and math.prod(shape) == 1:
        index = (0,) * len(shape)
    last = write_path(here, tuple(size - 1 for size in shape))
    if len(index) != len(shape):
        raise SourceError(
            f"'{write_path('obs', path)}' is not one number: {here} has shape {shape}"
            + (f", so name an entry up to {last}" if shape else f"; write {here}")
        )
    entry = tuple(part for part, size in zip(index, shape, strict=True) if isinstance(part, int) and part < size)
    if len(entry) != len(shape):
        raise SourceError(
            f"'{write_path('obs', path)}' does not exist: {here} has shape {shape}, its last entry is {last}"
        )
    return ObservationEntry(keys, entry)
