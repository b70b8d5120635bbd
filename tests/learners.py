"""Small agents for the toy environments, and what they log."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.vec_env import VecEnv

from persist_sb3.batch import tree_map
from persist_sb3.buffers.transitions import Transitions
from persist_sb3.callbacks import PersistCallback


class Ledger(PersistCallback):
    """Writes down each step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Transitions] = []

    def _on_step(self) -> bool:
        self.steps.append(self.store.read(self.locals))
        return True

    def stack(self, name: str) -> Any:
        """
        :return: a column of all steps, ``(T, n, ...)``
        """
        return tree_map(lambda *leaves: np.stack(leaves), *(getattr(step, name) for step in self.steps))


def make_model(env: VecEnv, algorithm: Any = PPO, **more: Any) -> BaseAlgorithm:
    """
    :param env: what it learns in
    :param algorithm: PPO, or an off-policy algorithm
    :param more: parameters, over those that make it small
    :return: an agent that learns something within some hundred steps
    """
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}
    if algorithm is PPO:
        kwargs |= {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
    else:
        kwargs |= {"learning_starts": 40, "buffer_size": 300, "batch_size": 8, "train_freq": 8, "gradient_steps": 1}
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model: BaseAlgorithm = algorithm(policy, env, **kwargs | more)
    return model


def set_up(
    algo: str, env_id: str, entry: str | dict[str, Any] | Path, folder: Path, steps: int = 64, **more: Any
) -> tuple[ExperimentManager, BaseAlgorithm]:
    """
    What rl-zoo3 makes of an entry.

    :param algo: the zoo's name of an algorithm
    :param env_id: an environment
    :param entry: its entry in a hyperparameter file: its text, what it says, or the file
    :param folder: for files
    :param steps: of the environments
    :param more: of the experiment
    :return: the experiment, and the agent that it is to train
    """
    if isinstance(entry, Path):
        config = entry
    else:
        config = folder / "entry.yml"
        config.write_text(f"{env_id}:\n{entry}" if isinstance(entry, str) else yaml.safe_dump({env_id: entry}))
    manager = ExperimentManager(
        argparse.Namespace(),
        algo,
        env_id,
        str(folder),
        n_timesteps=steps,
        eval_freq=-1,
        config=str(config),
        log_interval=-1,
        verbose=0,
        device="cpu",
        **more,
    )
    experiment = manager.setup_experiment()
    assert experiment is not None
    model, _ = experiment
    return manager, model


def train_entry(algo: str, env_id: str, entry: str, folder: Path) -> Any:
    """
    Train as rl-zoo3 does.

    :param algo: the zoo's name of an algorithm
    :param env_id: an environment
    :param entry: its entry in a hyperparameter file
    :param folder: for files
    :return: the agent
    """
    manager, model = set_up(algo, env_id, entry, folder, steps=128)
    manager.learn(model)
    manager.save_trained_model(model)
    return model


class Pages(KVWriter):
    """Keeps what the logger writes, a page at a time."""

    def __init__(self) -> None:
        self.pages: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.pages.append(dict(key_values))

    def close(self) -> None:
        pass
