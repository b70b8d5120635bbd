"""What a run folder of rl-zoo3 holds: the training record, the environment, the agent."""

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import yaml
from gymnasium.envs.registration import load_env_creator
from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from persist_sb3 import zoo
from persist_sb3.callbacks.metrics import FILE_NAME
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.evaluation import declared_viability
from persist_sb3.metrics import EpisodeRecord, read_episodes
from persist_sb3.packages import import_packages
from persist_sb3.state import forget_loaded
from persist_sb3.wrappers import VecInternalState

Split = Literal["train", "validation", "test"]


class RunError(RuntimeError):
    """Something in a run folder is missing or damaged."""


class Run:
    """
    A run of rl-zoo3, finished or in progress. Like rl-zoo3's own commands, it executes what the folder's files say
    (classes by name, pickles): open only runs that you trust.

    :param folder: such as ``logs/ppo/GridLife-v0_1``
    :raises RunError: if it is not the folder of a run
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        found = sorted(self.folder.glob("*/args.yml"))
        if len(found) != 1:
            raise RunError(f"{self.folder} is not the folder of one run: {self._what_is_wrong(len(found))}")
        #: Where rl-zoo3 keeps its ``args.yml``, ``config.yml`` and the statistics of ``VecNormalize``.
        self.parameters = found[0].parent
        try:
            self.arguments = dict(yaml.load(found[0].read_text(encoding="utf-8"), Loader=yaml.UnsafeLoader))
            self._config, self._stats_path = get_saved_hyperparams(str(self.parameters), test_mode=True)
            self.algo: str = self.arguments["algo"]
            self.env_id: str = self.arguments["env"]
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{self.parameters}: args.yml or config.yml is damaged ({error})") from error

    def _what_is_wrong(self, found: int) -> str:
        if not self.folder.is_dir():
            return "there is no such folder"
        if found > 1:
            return f"{found} of its sub-folders have an args.yml"
        below = [*self.folder.glob("*/*/args.yml"), *self.folder.glob("*/*/*/args.yml")]
        if (self.folder / "args.yml").is_file():
            return f"did you mean {self.folder.resolve().parent}?"
        if below:
            return f"did you mean {below[0].parents[1]}?"
        return (
            "ENV/args.yml is missing, which rl-zoo3 writes when training begins. Give the folder that training printed "
            "as 'Log path', such as logs/ppo/GridLife-v0_1"
        )

    @property
    def entry(self) -> dict[str, Any]:
        """What it was trained with, as an entry of a hyperparameter file."""
        text = (self.parameters / "config.yml").read_text(encoding="utf-8")
        return dict(yaml.load(text, Loader=yaml.UnsafeLoader))

    @property
    def internal_state(self) -> Mapping[str, Any] | None:
        """Parameters of the run's own ``InternalState`` with constraints, if its configuration lists one."""
        for key in ("env_wrapper", "vec_env_wrapper"):
            for entry in _as_list(self._config.get(key)):
                if isinstance(entry, dict):
                    ((name, parameters),) = entry.items()
                    if name.endswith("InternalState") and "constraints" in parameters:
                        return dict(parameters)
        return None

    @property
    def model_path(self) -> Path | None:
        """The agent: the final one; while there is none, the best so far, or else the last checkpoint."""
        final, best = self.folder / f"{self.parameters.name}.zip", self.folder / "best_model.zip"
        checkpoints = self.folder.glob("rl_model_*_steps.zip")
        last = max(checkpoints, key=lambda path: int(path.stem.split("_")[-2]), default=None)
        return next((path for path in (final, best) if path.is_file()), last)

    @property
    def has_splits(self) -> bool:
        """Whether the environment is a form of GridLife, whose layouts are split into those for training and others."""
        entry_point = gym.spec(self.env_id).entry_point
        creator: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        return isinstance(creator, type) and issubclass(creator, GridLifeEnv)

    def make_env(
        self,
        num_envs: int,
        *,
        split: Split = "test",
        judge: Mapping[str, Any] | None = None,
        innermost: type[gym.Wrapper[Any, Any, Any, Any]] | None = None,
        render_mode: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> VecEnv:
        """
        Rebuild the environment with its layers, and with its observations normalised as at the end of training.

        :param num_envs: how many
        :param split: which layouts, in GridLife
        :param judge: parameters of the ``VecInternalState`` that says what is alive, if the run's environment does not
        :param innermost: a wrapper to put beneath the run's own
        :param render_mode: of the environment
        :param env_kwargs: keywords of the environment that are not as they were in training, for a world that has
            changed
        :return: the environments, in this process
        :raises RunError: if it cannot be rebuilt, or nothing says what its internal variables are
        """
        try:
            import_packages(self.arguments.get("gym_packages") or [])
        except ImportError as error:
            raise RunError(f"{self.folder} was trained with --gym-packages, and {error}") from error
        if self.env_id not in gym.registry:
            raise RunError(f"{self.env_id} is not registered: name the module that registers it with --gym-packages")
        config = dict(self._config)
        config["env_kwargs"] = {
            **(config.get("env_kwargs") or {}),
            **(self.arguments.get("env_kwargs") or {}),
            **(env_kwargs or {}),
        }
        if innermost is not None:
            config["env_wrapper"] = [innermost, *_as_list(config.get("env_wrapper"))]
        venv = self._make(num_envs, config, split, render_mode)
        try:
            declared_viability(venv)
        except RuntimeError as error:
            venv.close()
            if judge is None:
                raise RunError(
                    f"{self.folder}: nothing says what the internal variables of {self.env_id} are. Report it together "
                    "with a run on the same environment that was trained with constraints "
                    "(persist_sb3.wrappers.VecInternalState): these are then applied to this run, too"
                ) from error
            # Beneath the run's own layers, and without a trace in what the agent sees.
            layers = [{VecInternalState: {**judge, "append": False}}, *_as_list(config.get("vec_env_wrapper"))]
            venv = self._make(num_envs, {**config, "vec_env_wrapper": layers}, split, render_mode)
        return venv

    def _make(self, num_envs: int, config: dict[str, Any], split: Split, render_mode: str | None) -> VecEnv:
        kwargs = dict(config["env_kwargs"])
        if self.has_splits:
            kwargs["split"] = split
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        try:
            # It prints what it does.
            with contextlib.redirect_stdout(io.StringIO()):
                return create_test_env(
                    self.env_id,
                    n_envs=num_envs,
                    stats_path=self._stats_path,
                    should_render=False,
                    # A run without layers can say so with None, at which it would stumble.
                    hyperparams={key: value for key, value in config.items() if value is not None},
                    env_kwargs=kwargs,
                    vec_env_cls=DummyVecEnv,
                )
        except Exception as error:  # The code of the environment and its wrappers is anyone's.
            raise RunError(
                f"{self.folder}: its environment cannot be rebuilt ({type(error).__name__}: {error})"
            ) from error

    def load_model(self, venv: VecEnv, seed: int) -> BaseAlgorithm:
        """
        :param venv: what :meth:`make_env` returned
        :param seed: of the policy's samples
        :return: the agent
        :raises RunError: if there is none yet, or its file is damaged
        """
        path = self.model_path
        if path is None:
            raise RunError(f"{self.folder}: no agent has been saved yet")
        zoo.register_ppo_mask()
        forget_loaded()
        kwargs: dict[str, Any] = {"seed": seed}
        if issubclass(ALGOS[self.algo], OffPolicyAlgorithm):
            # The replay buffer is not needed; with its options it can be refused.
            kwargs |= {"buffer_size": 1, "optimize_memory_usage": False}
        if "HerReplayBuffer" in str(self._config.get("replay_buffer_class", "")):
            kwargs["env"] = venv
        # The memory of a recurrent policy is begun anew, and lies on the device of the training, which may not be here.
        unused = {"learning_rate": 0.0, "lr_schedule": _zero, "clip_range": _zero, "_last_lstm_states": None}
        try:
            return ALGOS[self.algo].load(path, custom_objects=unused, **kwargs)
        except Exception as error:  # A damaged zip makes zipfile, pickle and torch raise nearly anything.
            raise RunError(
                f"{path} cannot be loaded ({type(error).__name__}: {error}). If it is damaged, put another model of "
                "the run (best_model.zip, rl_model_N_steps.zip) in its place"
            ) from error

    def training_episodes(self) -> tuple[list[EpisodeRecord], str | None]:
        """
        What happened in training: the episodes that ``MetricsCallback`` recorded, or else those in the Monitor's files.

        :return: the episodes, none if there is no record yet, and how their violations were told if not by constraints
        :raises RunError: if the record is damaged
        """
        path = self.folder / FILE_NAME
        spec = gym.registry.get(self.env_id)
        try:
            if path.is_file() and (records := read_episodes(path)):
                return records, None
            return read_monitors(self.folder, None if spec is None else spec.max_episode_steps)
        except ValueError as error:
            raise RunError(str(error)) from error


def read_monitors(folder: Path, time_limit: int | None) -> tuple[list[EpisodeRecord], str | None]:
    """
    Read the Monitor's files, which know nothing about constraints: an episode that ended before the time limit is taken
    to have violated one, at its last step.

    :param folder: where the files are, ``*.monitor.csv``
    :param time_limit: steps after which an episode is cut off. Default: the length of the longest episode
    :return: the episodes in the order of their ends (with ``timestep`` the steps of all episodes so far), and how
        violations were told
    :raises ValueError: if a file is damaged
    """
    rows: list[tuple[float, int, float, int]] = []
    for env, path in enumerate(sorted(folder.glob("*.monitor.csv"))):
        with open(path, encoding="utf-8", newline="") as file:
            header = file.readline()
            if not header.endswith("\n"):
                continue
            start = json.loads(header[1:])["t_start"]
            # A line that is being written lacks its last entries.
            whole = (row for row in csv.DictReader(file) if row["t"])
            rows += [(start + float(row["t"]), int(row["l"]), float(row["r"]), env) for row in whole]
    if not rows:
        return [], None
    rows.sort()
    limit = time_limit or max(length for _, length, _, _ in rows)
    records, steps = [], 0
    for _, length, task_return, env in rows:
        steps += length
        ended_early = length < limit
        records.append(
            EpisodeRecord(
                length=length,
                terminated=ended_early,
                truncated=not ended_early,
                violated=None,
                violated_at=length if ended_early else None,
                violations=int(ended_early),
                min_margin=math.nan,
                satisfaction={},
                near_steps=0,
                recovered_steps=0,
                task_return=task_return,
                shaped_return=math.nan,
                reward_terms={"task": task_return},
                env=env,
                timestep=steps,
            )
        )
    return records, f"trained without MetricsCallback: an episode that ended before {limit} steps counts as a violation"


def _as_list(entry: Any) -> list[Any]:
    if entry is None:
        return []
    return entry if isinstance(entry, list) else [entry]


def _zero(_: float) -> float:
    return 0.0
