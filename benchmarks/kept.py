"""What benchmarks keep while they run, so that one that is interrupted goes on where it was."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO

from persist_sb3.models.base import Model, rebuild
from persist_sb3.models.spec import StateSpec
from persist_sb3.wrappers.action_shield import KINDS


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """
    :param path: a JSON file
    :param measure: called if it is not there
    :return: what it returned, now or before
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".partial")
        written.write_text(json.dumps(measure()))
        os.replace(written, path)
    return json.loads(path.read_text())


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


def models_of(agent: PPO, spec: StateSpec) -> dict[str, Model]:
    """
    :param agent: a loaded one
    :param spec: its environment's state and actions
    :return: the models that were trained beside it, by name
    """
    pending = agent.persist.pending  # type: ignore[attr-defined]
    return {name: rebuild(saved, spec, KINDS[name]) for name, saved in pending.items() if name in KINDS}
