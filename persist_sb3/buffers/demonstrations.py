"""Demonstrations: whole episodes of an agent that stays alive, for models to learn from before the first step."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persist_sb3.batch import Batch, take
from persist_sb3.buffers.transitions import Transitions, as_batch
from persist_sb3.viability import ViabilitySet

#: Of the file. A later one that cannot be read as this gets another number.
FORMAT = 1
#: Episodes that a message names one by one.
MOST_NAMED = 10


class DemonstrationError(RuntimeError):
    """Demonstrations that are damaged, of other internal variables, or do not stay alive."""


class Demonstrations:
    """
    Whole episodes, one after the other, in which no constraint was ever violated.

    :param transitions: in the order in which they happened, the last of each episode with ``done``, ``(n, ...)``
    :param viability: the constraints that they are held against
    :param drop_unsafe: leave episodes out that violate a constraint, instead of refusing the set
    :raises DemonstrationError: if there is no transition, an episode is not whole, the internal variables are others
        than the constraints', or a constraint is violated (saying how often and where) and this is not to be dropped
    """

    def __init__(self, transitions: Transitions, viability: ViabilitySet, *, drop_unsafe: bool = False) -> None:
        _require_whole(transitions, len(viability.dims))
        self.viability = viability
        #: Episodes that were left out.
        self.dropped = 0
        unsafe = _unsafe(transitions, viability)
        if unsafe.any():
            if not drop_unsafe:
                raise DemonstrationError(_complaint(transitions, viability, unsafe))
            episode = _episodes(transitions)
            bad = np.unique(episode[unsafe])
            self.dropped = len(bad)
            kept = np.flatnonzero(~np.isin(episode, bad))
            if not len(kept):
                raise DemonstrationError(f"none of the {len(bad)} episodes stays alive throughout: record others")
            transitions = Transitions(**take(as_batch(transitions), kept))
        self.transitions = transitions
        #: Row after the last of each episode, ``(e,)``.
        self.ends: NDArray[np.intp] = np.flatnonzero(transitions.done) + 1

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.transitions)

    @property
    def episodes(self) -> int:
        """Number of episodes, ``e``."""
        return len(self.ends)

    @property
    def lengths(self) -> NDArray[np.intp]:
        """Steps of each episode, ``(e,)``."""
        return np.diff(self.ends, prepend=0)

    @property
    def returns(self) -> NDArray[np.float64]:
        """Sum of the rewards of each episode, as the layers around it gave them, ``(e,)``."""
        return np.add.reduceat(self.transitions.reward, self.ends - self.lengths)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """
        Write them to one file, all of it or nothing.

        :param path: of the file, such as ``demonstrations.npz``
        :return: the same
        """
        arrays: dict[str, NDArray[Any]] = {}
        layout = {name: _spread(name, column, arrays) for name, column in as_batch(self.transitions).items()}
        header = {"format": FORMAT, "dims": self.viability.dims, "layout": layout}
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], viability: ViabilitySet, *, drop_unsafe: bool = False
    ) -> "Demonstrations":
        """
        :param path: what :meth:`save` wrote; nothing in it is executed
        :param viability: the constraints that they are held against, perhaps others than when they were recorded
        :param drop_unsafe: leave episodes out that violate a constraint, instead of refusing the set
        :return: the demonstrations
        :raises FileNotFoundError: if there is no such file
        :raises DemonstrationError: if it is damaged, or what it holds is refused as by the constructor
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(str(arrays["header"]))
                if header["format"] != FORMAT:
                    raise DemonstrationError(
                        f"{path} has format {header['format']}, and this version of the package reads {FORMAT} only"
                    )
                columns = {name: _gather(part, arrays) for name, part in header["layout"].items()}
                dims = tuple(header["dims"])
                transitions = Transitions(**columns)
        except (OSError, EOFError, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise DemonstrationError(f"{path} holds no demonstrations, or is damaged ({error})") from error
        if dims != viability.dims:
            raise DemonstrationError(
                f"{path} was recorded with the internal variables {list(dims)}, and the constraints are about "
                f"{list(viability.dims)}: record it again with these"
            )
        return cls(transitions, viability, drop_unsafe=drop_unsafe)


def _require_whole(transitions: Transitions, d: int) -> None:
    """
    :param transitions: episodes one after the other
    :param d: number of internal variables
    :raises DemonstrationError: if they are none, or have other internal variables
    """
    if not len(transitions):
        raise DemonstrationError("there is no transition in these demonstrations")
    if transitions.internal.shape != (len(transitions), d) or transitions.next_internal.shape != (len(transitions), d):
        raise DemonstrationError(
            f"the demonstrations' internal states have shapes {transitions.internal.shape} and "
            f"{transitions.next_internal.shape}, but {len(transitions)} transitions under constraints on {d} variables "
            f"need {(len(transitions), d)}"
        )
    if not transitions.done[-1]:
        raise DemonstrationError("the last episode is cut off: demonstrations are whole episodes, ending with done")
    goes_on = ~transitions.done[:-1]
    torn = (transitions.next_internal[:-1] != transitions.internal[1:]).any(axis=1) & goes_on
    if torn.any():
        raise DemonstrationError(
            f"transition {int(torn.argmax()) + 1} does not begin where the one before it ended, at "
            f"{int(torn.sum())} places in all: give each episode's transitions in order, the last of it with done"
        )


def _episodes(transitions: Transitions) -> NDArray[np.intp]:
    """
    :param transitions: whole episodes, one after the other
    :return: the number of the episode that each belongs to, counted from 0, ``(n,)``
    """
    return np.cumsum(transitions.done) - transitions.done


def _unsafe(transitions: Transitions, viability: ViabilitySet) -> NDArray[np.bool_]:
    """
    :param transitions: whole episodes
    :param viability: the constraints
    :return: which violate one, each state counted once: every successor, and an episode's first, ``(n,)``
    """
    unsafe: NDArray[np.bool_] = ~viability.contains(transitions.next_internal)
    return unsafe | (_first(transitions) & ~viability.contains(transitions.internal))


def _first(transitions: Transitions) -> NDArray[np.bool_]:
    return np.concatenate([[True], transitions.done[:-1]])


def _complaint(transitions: Transitions, viability: ViabilitySet, unsafe: NDArray[np.bool_]) -> str:
    """
    :param transitions: whole episodes
    :param viability: the constraints
    :param unsafe: which transitions violate one, ``(n,)``
    :return: how many, of which constraints, in which episodes
    """
    episode, first = _episodes(transitions), _first(transitions)[:, None]
    margins = viability.margins(transitions.next_internal)
    margins = np.where(first, np.minimum(margins, viability.margins(transitions.internal)), margins)
    # Negated, so that NaN counts as violated.
    broken = ~(margins >= 0.0)
    where = {name: np.unique(episode[column]) for name, column in zip(viability.names, broken.T, strict=True)}
    parts = [f"'{name}' in {_name(numbers)}" for name, numbers in where.items() if len(numbers)]
    return (
        f"{np.count_nonzero(unsafe)} of {len(transitions)} demonstrated transitions violate the constraints, in "
        f"{len(np.unique(episode[unsafe]))} of {episode[-1] + 1} episodes (counted from 0): "
        f"{'; '.join(parts) or 'an internal variable is NaN'}. Record safe episodes, or leave these out "
        "(drop_unsafe=True, --drop-unsafe)"
    )


def _name(numbers: NDArray[np.intp]) -> str:
    named = ", ".join(map(str, numbers[:MOST_NAMED]))
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return f"episode {named}{more}" if len(numbers) == 1 else f"episodes {named}{more}"


def _spread(name: str, batch: Batch, arrays: dict[str, NDArray[Any]]) -> Any:
    """
    :param name: of the column
    :param batch: its array, or a dict or tuple of such
    :param arrays: where the arrays go, by name
    :return: the same structure of names, as JSON has it
    """
    if isinstance(batch, dict):
        return {key: _spread(f"{name}.{key}", part, arrays) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return [_spread(f"{name}.{index}", part, arrays) for index, part in enumerate(batch)]
    # Numbered, as a key of an observation may hold anything, a dot too.
    name = f"{len(arrays)}.{name}"
    arrays[name] = np.asarray(batch)
    return name


def _gather(layout: Any, arrays: Any) -> Batch:
    """
    :param layout: what :func:`_spread` returned
    :param arrays: the arrays, by name
    :return: the batch
    """
    if isinstance(layout, dict):
        return {key: _gather(part, arrays) for key, part in layout.items()}
    if isinstance(layout, list):
        return tuple(_gather(part, arrays) for part in layout)
    return arrays[layout]
