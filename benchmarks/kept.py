"""What benchmarks keep: results, and what was measured so far, so that one that is interrupted goes on where it was."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO

from persist_sb3.models.base import Model, rebuild
from persist_sb3.models.spec import StateSpec
from persist_sb3.state import PersistState
from persist_sb3.wrappers.action_shield import KINDS


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """
    :param path: a JSON file
    :param measure: called if it is not there
    :return: what it returned, now or before
    """
    if not path.is_file():
        _write(path, json.dumps(measure()))
    return json.loads(path.read_text())


def save(results: Any, path: Path, **size: int) -> None:
    """
    :param results: of a benchmark
    :param path: a JSON file
    :param size: of the benchmark, such as ``seeds``. If it is told, results of other sizes stay beside these
    """
    if size:
        results = {**saved(path), _name(size): results}
    _write(path, json.dumps(results, indent=2) + "\n")


def saved(path: Path, **size: int) -> dict[str, Any]:
    """
    :param path: what :func:`save` was given
    :param size: likewise
    :return: the results that are there, of this size if it is told; empty if there are none
    """
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return results.get(_name(size), {}) if size else results


def _name(size: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in size.items())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".partial")
    written.write_text(text)
    os.replace(written, path)


def folder_name(condition: str) -> str:
    """
    :param condition: its name in tables
    :return: the same for files
    """
    return condition.replace("+ ", "").replace(", ", "-").replace(" ", "-")


def kept_agent(path: Path, train: Callable[[], PPO]) -> PPO:
    """
    :param path: an agent's zip
    :param train: called if it is not there
    :return: the agent, loaded, so that it is the same one whoever trained it
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".partial.zip")
        train().save(written)
        os.replace(written, path)
    return PPO.load(path, device="cpu")


def models_of(agent: PPO, spec: StateSpec, kinds: Mapping[str, type[Model]] = KINDS) -> dict[str, Any]:
    """
    :param agent: trained, or loaded
    :param spec: its environment's state and actions
    :param kinds: classes of the models, by name
    :return: those that were trained beside it, by name
    """
    state: PersistState = agent.persist  # type: ignore[attr-defined]
    rebuilt = {name: rebuild(state.pending[name], spec, kind) for name, kind in kinds.items() if name in state.pending}
    return rebuilt | {name: part for name, part in state.bundle().items() if name in kinds}
