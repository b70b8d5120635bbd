"""Everything that was trained beside the policy, saved and loaded as one."""

import base64
import io
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch

FORMAT = "persist_sb3.PersistState"
VERSION = 1

_ARRAY = "__ndarray__"
_PLAIN = (type(None), bool, int, float, complex, str)
_KEYS = (type(None), bool, int, float, str)
_ALLOWED = "None, bool, int, float, complex, str, tensors, numpy arrays, and lists, tuples and dicts of them"


class PersistStateError(Exception):
    """
    A saved state that cannot be used.

    It is an ``Exception`` and nothing narrower on purpose: SB3 turns a RuntimeError, TypeError or AttributeError of an
    unpickled attribute into a warning and goes on without it, and an agent would then run without its models.

    :param source: where the state comes from
    :param problem: what is wrong with it
    :param remedy: what to do about it
    """

    def __init__(self, source: str, problem: str, remedy: str) -> None:
        super().__init__(f"{source}: {problem}. {remedy}")
        self.source = source


class Part(Protocol):
    """What :class:`PersistState` keeps: a module, an optimiser, or anything that gives and takes its state likewise."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


def _encode(value: Any, where: str) -> Any:
    """
    :param value: a state, or something inside it
    :param where: path to it, for the error message
    :return: a copy that ``torch.load(weights_only=True)`` reads
    :raises TypeError: if there is something in it that a safe load would refuse
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        # A view would drag its whole storage into the file, and another device would have to be there to read it.
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject and value.dtype.names is None:
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).copy()
        return {_ARRAY: (value.dtype.str, value.shape, torch.from_numpy(data))}
    if isinstance(value, list):
        return [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return tuple(_encode(item, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(value, dict) and _ARRAY not in value:
        if odd := [key for key in value if type(key) not in _KEYS]:
            raise TypeError(f"{where} has the key {odd[0]!r}, which cannot be saved: use str, int, float, bool or None")
        return {key: _encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}, {value!r}, which cannot be saved: allowed are {_ALLOWED}")


def _decode(value: Any) -> Any:
    """
    :param value: what :func:`_encode` returned
    :return: what it was given
    """
    if isinstance(value, dict):
        if _ARRAY in value:
            dtype, shape, data = value[_ARRAY]
            return data.numpy().view(dtype).reshape(shape)
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_decode(item) for item in value)
    return value


class PersistState:
    """
    A registry of named parts: models, optimisers, normalisers, counters, thresholds, random generators.

    As ``model.persist`` it rides in the zip that SB3's ``model.save`` writes, so the final model, the best one and
    every checkpoint hold the parts of that moment, and ``load`` brings them back. In a Python that lacks this package
    such a zip loads with ``custom_objects={"persist": None}``.

    A part that was loaded but that nobody has registered yet is kept, and written again by the next save. A state
    holds None, bool, int, float, complex, str, tensors, numpy arrays (and scalars, which come back as Python numbers),
    and lists, tuples and dicts of them: among others the states of ``torch.Generator`` and ``numpy.random.Generator``.
    Reading it back executes no code.
    """

    # Without a __dict__, of which SB3 would write a transcript into the zip, tensors and all.
    __slots__ = ("__weakref__", "_parts", "_pending", "_shared")

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._shared: dict[str, torch.nn.Module] = {}
        self._pending: dict[str, Any] = {}

    @property
    def parts(self) -> Mapping[str, Part]:
        """The registered parts, by name."""
        return MappingProxyType(self._parts)

    @property
    def pending(self) -> Mapping[str, Any]:
        """Loaded states of parts that nobody has registered yet, by name."""
        return MappingProxyType(self._pending)

    def register(self, name: str, part: Part, *, shared: bool = False) -> None:
        """
        Add a part. If a state was loaded under this name, or another part holds the name (that of the previous
        ``learn``), the new part takes that state over.

        :param name: its name, unique among the parts
        :param part: anything with ``state_dict()`` and ``load_state_dict(state)``
        :param shared: hand it to the environments, see :meth:`bundle`. It must then be a ``torch.nn.Module`` on the CPU
            whose values change in place only (optimiser steps, ``load_state_dict``, ``copy_``)
        :raises TypeError: if the part lacks these methods, or cannot be shared
        :raises PersistStateError: if it does not accept the state that was loaded
        """
        if not (callable(getattr(part, "state_dict", None)) and callable(getattr(part, "load_state_dict", None))):
            raise TypeError(f"part {name!r}, a {type(part).__name__}, needs state_dict() and load_state_dict(state)")
        module = self._shareable(name, part) if shared else None
        previous = self._parts.get(name)
        if name in self._pending:
            self._restore(name, part, self._pending[name])
            del self._pending[name]
        elif previous is not None and previous is not part:
            self._restore(name, part, _decode(_encode(previous.state_dict(), f"{name}.state_dict()")))
        self._parts[name] = part
        self._shared.pop(name, None)
        if module is not None:
            self._shared[name] = module

    @staticmethod
    def _shareable(name: str, part: Part) -> torch.nn.Module:
        if not isinstance(part, torch.nn.Module):
            raise TypeError(f"part {name!r} is a {type(part).__name__}: only a torch.nn.Module can be shared")
        for key, tensor in [*part.named_parameters(), *part.named_buffers()]:
            if tensor.device.type != "cpu":
                raise TypeError(
                    f"part {name!r} has {key} on {tensor.device}: environments run on the CPU. Share a copy that lives "
                    "there, and bring it up to date with load_state_dict"
                )
        return part

    @staticmethod
    def _restore(name: str, part: Part, saved: Any) -> None:
        try:
            part.load_state_dict(saved)
        except Exception as error:
            raise PersistStateError(
                f"saved part {name!r}",
                f"{type(part).__name__} does not accept it ({error})",
                "Configure the part as in the run that saved it, or train from scratch",
            ) from error

    def bundle(self) -> dict[str, torch.nn.Module]:
        """
        :return: the shared parts, by name. Sent to a worker process, their tensors are not copied but put into shared
            memory, so that what is trained here is seen there
        """
        return dict(self._shared)

    def to_bytes(self) -> bytes:
        """
        :return: every part's state, in the format that :meth:`from_bytes` reads
        :raises TypeError: naming the part and the key, if a state holds something that cannot be saved
        """
        states = {name: _encode(part.state_dict(), f"{name}.state_dict()") for name, part in self._parts.items()}
        states |= {name: _encode(state, name) for name, state in self._pending.items()}
        stream = io.BytesIO()
        torch.save({"format": FORMAT, "version": VERSION, "parts": states}, stream)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, blob: bytes, source: str = "these bytes") -> "PersistState":
        """
        :param blob: what :meth:`to_bytes` returned
        :param source: where it comes from, for the error message
        :return: a state whose parts all wait to be registered
        :raises PersistStateError: if it is damaged, something else, or from a newer version
        """
        problem, remedy = "it is not a saved PersistState, or it is damaged", "Use an earlier checkpoint"
        try:
            with zipfile.ZipFile(io.BytesIO(blob)) as archive:
                damaged = archive.testzip()  # torch itself compares no checksums
            document = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
        except Exception as error:  # Foreign bytes make them raise nearly anything.
            raise PersistStateError(source, problem, remedy) from error
        if damaged or not isinstance(document, dict) or document.get("format") != FORMAT:
            raise PersistStateError(source, problem, remedy)
        if document["version"] > VERSION:
            raise PersistStateError(
                source,
                f"it is in format {document['version']}, and this version of persist_sb3 reads up to {VERSION}",
                "Upgrade persist_sb3",
            )
        state = cls()
        state._pending = _decode(document["parts"])
        return state

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the state to a file of its own. The file is complete or untouched, whenever the process dies.

        :param path: where to
        """
        path = Path(path)
        blob = self.to_bytes()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PersistState":
        """
        Read a state, without executing code, and publish it as :func:`last_loaded`.

        :param path: a file that :meth:`save` wrote, or a model that SB3 saved with the state as ``model.persist``
        :return: a state whose parts all wait to be registered
        :raises PersistStateError: if the file is damaged, something else, or from a newer version
        """
        blob = Path(path).read_bytes()
        return _publish(cls.from_bytes(_blob_in_model(blob, str(path)) or blob, str(path)))

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return _rebuild, (self.to_bytes(),)

    def __repr__(self) -> str:
        pending = f", pending={sorted(self._pending)}" if self._pending else ""
        return f"PersistState(parts={sorted(self._parts)}{pending})"


class _BlobUnpickler(pickle.Unpickler):
    """Reads the pickle of a :class:`PersistState` as the bytes in it, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (_rebuild.__module__, _rebuild.__name__):
            return bytes
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _blob_in_model(content: bytes, source: str) -> bytes | None:
    """
    :param content: of a file
    :param source: its name
    :return: the bytes of ``model.persist`` if the file is a model that SB3 saved, otherwise None
    :raises PersistStateError: if it is such a model and has no usable state
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if "_stable_baselines3_version" not in archive.namelist():
                return None
            attributes = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None
    if not isinstance(attributes.get("persist"), dict):
        raise PersistStateError(
            source, "the model was saved without a PersistState", "Give one that was trained with a PersistCallback"
        )
    try:
        blob: bytes = _BlobUnpickler(io.BytesIO(base64.b64decode(attributes["persist"][":serialized:"]))).load()
    except Exception as error:  # A foreign pickle raises nearly anything, too.
        raise PersistStateError(
            source, f"model.persist is not a PersistState ({error})", "Use an earlier checkpoint"
        ) from error
    return blob


_last_loaded: PersistState | None = None


def last_loaded() -> PersistState | None:
    """
    :return: the state that was loaded last in this process, by :meth:`PersistState.load` or with an SB3 model; None if
        none was. Training never changes it
    """
    return _last_loaded


def forget_loaded() -> None:
    """Let an agent that is loaded next, and holds no state, not be shielded by the models of one that did."""
    global _last_loaded
    _last_loaded = None


def _publish(state: PersistState) -> PersistState:
    global _last_loaded
    _last_loaded = state
    return state


def _rebuild(blob: bytes) -> PersistState:
    return _publish(PersistState.from_bytes(blob, "the PersistState of this model"))
