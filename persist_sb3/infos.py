"""One view of the infos of ``n`` environments, whichever vector API they come from."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

Path = tuple[str | int, ...]

#: Where ``VecTrials`` joins lives: tells where one ends, of which the learner hears at the end of the last only.
LIFE_OVER = "life_over"

#: One number an environment, ``(n,)``, for a dict in its info: the key of that dict, a name in it, the numbers, and
#: whether they are added to those that are there.
Entry = tuple[str, str, NDArray[np.float64], bool]


def reset_source(env: VecEnv) -> VecEnv:
    """
    :param env: vectorised environments that were reset
    :return: the outermost wrapper with ``reset_infos``, which most leave empty, or the environments themselves
    """
    while isinstance(env, VecEnvWrapper) and not any(env.reset_infos):
        env = env.venv
    return env


class MissingInfoError(RuntimeError):
    """
    An environment's info lacks an entry that a layer was told to read.

    :param path: keys and indices of the entry, outermost first
    :param env_index: which of the environments
    :param available: the keys that are there
    :param within: the part of the path that its info does have
    """

    def __init__(self, path: Path, env_index: int, available: Sequence[str], within: Path = ()) -> None:
        super().__init__(path, env_index, available, within)
        self.path = path
        self.env_index = env_index
        self.available = available
        self.within = within

    def __str__(self) -> str:
        where = f"info{format_path(self.within)}" if self.within else "its info"
        return (
            f"info{format_path(self.path)} is missing in environment {self.env_index}; {where} has "
            f"{sorted(self.available) if self.available else 'no keys'}. The environment must give it at reset and at "
            "every step: name another source for this variable, or add the entry to the environment's info."
        )


def format_path(path: Path) -> str:
    """
    :param path: keys and indices, outermost first
    :return: the path as it would be written in Python, ``['battery'][0]``
    """
    return "".join(f"[{part!r}]" for part in path)


def episode_ends(dones: NDArray[np.bool_], infos: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """
    :param dones: what SB3's environments report, ``(n,)``
    :param infos: of the same step
    :return: where an episode ended, ``(n,)``. In a trial of several lives that is each life
    """
    return np.array([info[LIFE_OVER] for info in infos]) if LIFE_OVER in infos[0] else dones


def told_bonuses(infos: Sequence[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """
    :param infos: of one step, one an environment
    :return: what each bonus layer paid, ``(n,)`` each, by name; empty where there are not several
    :raises MissingInfoError: if one environment lacks a layer that environment 0 has
    """
    names = infos[0].get("bonuses", ())
    if len(names) < 2:
        return {}
    told, everyone = ListInfos(infos), np.arange(len(infos))
    return {name: told.column(("bonuses", name), everyone) for name in names}


class Infos(ABC):
    """The infos of one step (or reset) of ``n`` environments, read and written by column."""

    #: What layers have made of the step's outcome, with what they made it of: the next may see the same.
    made: tuple[Any, Any, NDArray[np.float32]] | None = None

    @abstractmethod
    def column(self, path: Path, slots: NDArray[np.intp]) -> NDArray[np.float64]:
        """
        :param path: keys and indices of the entry, outermost first
        :param slots: the environments to read, ascending, ``(k,)``
        :return: one row an environment, not to be changed in place, ``(k, ...)``
        :raises MissingInfoError: if one of them has no such entry
        """

    @abstractmethod
    def is_dict(self, key: str, slots: NDArray[np.intp]) -> bool:
        """
        :param key: key of the info
        :param slots: the environments meant, ``(k,)``
        :return: whether what the first of them has there is itself a dict
        """

    @abstractmethod
    def publish(self, key: str, slots: NDArray[np.intp], values: NDArray[Any], name: str | None = None) -> None:
        """
        Write one value an environment.

        :param key: key of the info
        :param slots: the environments to write to, ascending, ``(k,)``
        :param values: ``(k, ...)``, a row an environment
        :param name: if given, the value goes into the dict ``info[key]`` under this name
        """

    def publish_entries(self, everyone: NDArray[np.intp], entries: Sequence[Entry]) -> None:
        """
        Write several entries at once.

        :param everyone: all environments, ``(n,)``
        :param entries: what is written, in this order
        :raises MissingInfoError: if something is to be added to what is not there
        """
        for key, name, values, added in entries:
            self.publish(key, everyone, values + self.column((key, name), everyone) if added else values, name)


class ListInfos(list[dict[str, Any]], Infos):
    """
    Infos as SB3's ``VecEnv`` and a single ``gymnasium.Env`` give them: a dict an environment. It is a list of these
    dicts, so that wrappers hand it on as they would any other, and it remembers the vectors that were published in all
    of them: who reads one gets that very array, unless somebody has written something else since.

    :param infos: the dicts, changed in place by :meth:`publish`
    """

    __slots__ = ("_published",)

    def __init__(self, infos: Iterable[dict[str, Any]]) -> None:
        super().__init__(infos)
        self._published: dict[str, tuple[Sequence[Any], NDArray[np.float64] | None]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies are plain lists.
        return list, (list(self),)

    def column(self, path: Path, slots: NDArray[np.intp]) -> NDArray[np.float64]:
        key: Any
        key, *inner = path
        everyone = len(slots) == len(self)
        try:
            rows = [info[key] for info in (self if everyone else self._of(slots))]
            for part in inner:
                rows = [row[part] for row in rows]
        except (KeyError, IndexError, TypeError) as error:
            raise self._missing(path, slots.tolist()) from error
        published = self.published(key, rows) if everyone and not inner else None
        return np.array(rows, dtype=np.float64) if published is None else published

    def published(self, key: str, rows: Sequence[Any]) -> NDArray[np.float64] | None:
        """
        :param key: key of the info
        :param rows: what all environments have there, ``n`` of them
        :return: the array that was published there, ``(n, ...)``, if these are its rows; not to be changed in place
        """
        known, values = self._published.get(key, ((), None))
        return values if len(known) and all(map(is_, rows, known)) else None

    def _of(self, slots: NDArray[np.intp]) -> list[dict[str, Any]]:
        return [self[slot] for slot in slots.tolist()]

    def is_dict(self, key: str, slots: NDArray[np.intp]) -> bool:
        return isinstance(self[slots[0]].get(key), Mapping)

    def _missing(self, path: Path, slots: Sequence[int]) -> MissingInfoError:
        for slot in slots:
            value: Any = self[slot]
            keys, within = list(self[slot]), path[:0]
            for depth, part in enumerate(path):
                if isinstance(value, Mapping):
                    keys, within = list(value), path[:depth]
                try:
                    value = value[part]
                except (KeyError, IndexError, TypeError):
                    return MissingInfoError(path, slot, list(map(str, keys)), within)
        raise AssertionError(f"info{format_path(path)} is there in every environment")

    def publish(self, key: str, slots: NDArray[np.intp], values: NDArray[Any], name: str | None = None) -> None:
        everyone = len(slots) == len(self)
        infos = self if everyone else self._of(slots)
        rows = values.tolist() if values.ndim == 1 else list(values)
        if name is not None:
            for info, value in zip(infos, rows, strict=True):
                if key in info:
                    info[key][name] = value
                else:
                    info[key] = {name: value}
            return
        for info, value in zip(infos, rows, strict=True):
            info[key] = value
        # Numbers are gathered as fast as they are compared.
        if everyone and values.ndim > 1 and values.dtype == np.float64:
            self._published[key] = rows, values

    def publish_entries(self, everyone: NDArray[np.intp], entries: Sequence[Entry]) -> None:
        for key, name, values, added in entries:
            rows = zip(self, values.tolist(), strict=True)
            try:
                if added:
                    for info, value in rows:
                        info[key][name] += value
                elif key in self[0]:
                    for info, value in rows:
                        info[key][name] = value
                else:
                    for info, value in rows:
                        info[key] = {name: value}
            except KeyError as error:
                raise self._missing((key, name), everyone.tolist()) from error


class VectorInfos(Infos):
    """
    Infos as ``gymnasium.vector`` gives them: a dict of arrays, each with a mask ``_key`` of who reported it.

    :param infos: the dict, changed in place by :meth:`publish`
    :param num_envs: number of environments, ``n``
    """

    def __init__(self, infos: dict[str, Any], num_envs: int) -> None:
        self.infos = infos
        self.num_envs = num_envs

    def column(self, path: Path, slots: NDArray[np.intp]) -> NDArray[np.float64]:
        level: Any = self.infos
        for depth, part in enumerate(path):
            if not isinstance(level, Mapping):
                # What is left of the path indexes each environment's own array.
                return np.asarray(level[slots][(slice(None), *path[depth:])], dtype=np.float64)
            if part not in level:
                raise MissingInfoError(path, int(slots[0]), self._keys(level), path[:depth])
            reported = level.get(f"_{part}")
            if reported is not None and not reported[slots].all():
                raise MissingInfoError(path, int(slots[np.argmin(reported[slots])]), self._keys(level), path[:depth])
            level = level[part]
        rows = level[slots]
        return np.asarray(np.stack(rows) if rows.dtype == object else rows, dtype=np.float64)

    def is_dict(self, key: str, slots: NDArray[np.intp]) -> bool:
        return isinstance(self.infos.get(key), Mapping)

    @staticmethod
    def _keys(level: Mapping[str, Any]) -> list[str]:
        return [str(key) for key in level if not str(key).startswith("_")]

    def publish(self, key: str, slots: NDArray[np.intp], values: NDArray[Any], name: str | None = None) -> None:
        level = self.infos
        if name is not None:
            self._mark(level, key, slots)
            level = level.setdefault(key, {})
            key = name
        if key not in level:
            level[key] = np.zeros((self.num_envs, *values.shape[1:]), dtype=values.dtype)
        level[key][slots] = values
        self._mark(level, key, slots)

    def _mark(self, level: dict[str, Any], key: str, slots: NDArray[np.intp]) -> None:
        level.setdefault(f"_{key}", np.zeros(self.num_envs, dtype=bool))[slots] = True


class SameStepInfos(Infos):
    """
    Infos of a ``gymnasium.vector`` step in autoreset mode ``SAME_STEP``: where an episode ended, what the step reported
    lies in ``final_info`` and the rest of the dict describes the new episode.

    :param infos: the dict, changed in place by :meth:`publish`
    :param ended: the environments whose episode ended, ``(n,)``
    """

    def __init__(self, infos: dict[str, Any], ended: NDArray[np.bool_]) -> None:
        num_envs = len(ended)
        self.ended = ended
        self.running = VectorInfos(infos, num_envs)
        self.final = VectorInfos(infos.setdefault("final_info", {}), num_envs)

    def column(self, path: Path, slots: NDArray[np.intp]) -> NDArray[np.float64]:
        ended = self.ended[slots]
        if ended.all():
            return self.final.column(path, slots)
        if not ended.any():
            return self.running.column(path, slots)
        final, running = self.final.column(path, slots[ended]), self.running.column(path, slots[~ended])
        rows = np.empty((len(slots), *final.shape[1:]))
        rows[ended], rows[~ended] = final, running
        return rows

    def is_dict(self, key: str, slots: NDArray[np.intp]) -> bool:
        return (self.final if self.ended[slots[0]] else self.running).is_dict(key, slots)

    def publish(self, key: str, slots: NDArray[np.intp], values: NDArray[Any], name: str | None = None) -> None:
        ended = self.ended[slots]
        if ended.any():
            self.final.publish(key, slots[ended], values[ended], name)
        if not ended.all():
            self.running.publish(key, slots[~ended], values[~ended], name)
