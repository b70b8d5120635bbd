"""
What a shield does for real-valued actions, and for environments nobody here wrote: violations while training and
after, task return, and how often the shield steps in. Three agents each: bare SB3, with the homeostatic reward, and
with the shield on top, all trained by ``train.py`` from the hyperparameters in ``persist_sb3/hyperparams``.

Agents that are there already are not trained again, so the benchmark can be interrupted::

    python benchmarks/continuous.py                               # 3 seeds of all
    python benchmarks/continuous.py --seeds 1 --fraction 0.4      # a quick look
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from persist_sb3 import hyperparams, plots
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import EpisodeRecord, read_episodes
from persist_sb3.runs import Run

ROOT = Path(__file__).resolve().parents[1]
HOMEOSTAT, SHIELD = "persist_sb3.wrappers.VecHomeostatReward", "persist_sb3.wrappers.VecActionShield"
VIABILITY = "persist_sb3.callbacks.ViabilityCallback"
BUFFER = "get_class_by_name('persist_sb3.buffers.ExecutedActionReplayBuffer')"
CONDITIONS = ("bare SB3", "homeostat", "homeostat + shield")


@dataclass(frozen=True)
class Task:
    """
    One environment, its algorithm, and how the shield is trained there.

    :param algo: a file in ``persist_sb3/hyperparams``
    :param timesteps: environment steps an agent, at full length
    :param threshold: of the shield
    :param viability: parameters of ``ViabilityCallback``
    """

    algo: str
    timesteps: int
    threshold: float
    viability: dict[str, Any] = field(default_factory=dict)


OFTEN = {"train_freq": 1, "gradient_steps": 2}
TASKS = {
    "CartPole-v1": Task("ppo", 50_000, 0.1, OFTEN),
    "Pendulum-v1": Task("sac", 30_000, 0.1, OFTEN),
    "GridLifeContinuous-v0": Task("ppo", 100_000, 0.2),
}


class Interventions(VecEnvWrapper):
    """
    Counts how often a shield steps in.

    :param venv: the environments
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.steps = 0
        self.interventions = 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        result = self.venv.step_wait()
        self.steps += self.num_envs
        self.interventions += sum(bool(info.get("intervened", False)) for info in result[3])
        return result

    @property
    def rate(self) -> float:
        """Share of steps on which it does."""
        return self.interventions / max(self.steps, 1)


def parameters(env_id: str, condition: str) -> dict[str, Any]:
    """
    :param env_id: a key of ``TASKS``
    :param condition: one of ``CONDITIONS``
    :return: what the hyperparameter file is changed by
    """
    task = TASKS[env_id]
    layers = hyperparams.load(task.algo)[env_id]["vec_env_wrapper"]
    kept = [layer for layer in layers if name_of(layer) != SHIELD]
    callback: Any = ["persist_sb3.callbacks.MetricsCallback"]
    changes: dict[str, Any] = {}
    if condition == "bare SB3":
        kept = [unseen(layer) for layer in kept if name_of(layer) != HOMEOSTAT]
    elif condition == "homeostat + shield":
        kept.append({SHIELD: {"threshold": task.threshold}})
        callback.append({VIABILITY: task.viability} if task.viability else VIABILITY)
        if task.algo != "ppo":
            changes["replay_buffer_class"] = BUFFER
    return {**changes, "vec_env_wrapper": kept, "callback": callback}


def name_of(layer: str | dict[str, Any]) -> str:
    """
    :param layer: an entry of ``vec_env_wrapper``
    :return: its class
    """
    return layer if isinstance(layer, str) else next(iter(layer))


def unseen(layer: str | dict[str, Any]) -> str | dict[str, Any]:
    """
    :param layer: ``VecInternalState``, as it is shipped
    :return: the same, which leaves the agent's observation as it is
    """
    if isinstance(layer, str):
        return layer
    return {name: {key: value for key, value in given.items() if key != "append"} for name, given in layer.items()}


def train(env_id: str, condition: str, seed: int, timesteps: int, folder: Path) -> Path:
    """
    :param env_id: a key of ``TASKS``
    :param condition: one of ``CONDITIONS``
    :param seed: of the run
    :param timesteps: of the run
    :param folder: of all runs
    :return: the run's folder
    """
    task = TASKS[env_id]
    logs = folder / str(timesteps) / condition.replace(" ", "-") / f"seed-{seed}"
    run = logs / task.algo / f"{env_id}_1"
    if not (run / f"{env_id}.zip").is_file():
        command = [sys.executable, str(ROOT / "train.py"), "--algo", task.algo, "--env", env_id, "--seed", str(seed)]
        command += ["-n", str(timesteps), "--eval-freq", "-1", "--device", "cpu", "--verbose", "0"]
        command += ["-f", str(logs), "-params"]
        command += [
            f"{key}:{value if key == 'replay_buffer_class' else repr(value)}"
            for key, value in parameters(env_id, condition).items()
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return run


def figures(path: Path, timesteps: int, episodes: int) -> dict[str, float]:
    """
    :param path: a run's folder
    :param timesteps: of its training
    :param episodes: to evaluate
    :return: what is shown of it
    """
    run = Run(path)
    venv = Interventions(run.make_env(10, split="test"))
    model = run.load_model(venv, seed=0)
    # Policies of on-policy algorithms are sampled in training, and so are they here.
    deterministic = run.algo != "ppo" or run.env_id == "CartPole-v1"
    tests = [e.record for e in evaluate(model, venv, episodes, deterministic=deterministic, seed=1_000_000)]
    rate = venv.rate
    venv.close()
    trained = read_episodes(path / "persist.jsonl")
    return {
        "violating steps in training, per 1000": 1000.0 * violations(trained) / timesteps,
        "violating steps after, per 1000": 1000.0 * violations(tests) / sum(e.length for e in tests),
        "episodes without a violation": float(np.mean([e.violations == 0 for e in tests])),
        "task return": float(np.mean([e.task_return for e in tests])),
        "intervention rate": rate,
    }


def violations(records: Sequence[EpisodeRecord]) -> int:
    """
    :param records: of episodes
    :return: steps on which a constraint was violated
    """
    return sum(record.violations for record in records)


def summary(values: NDArray[np.float64]) -> str:
    """
    :param values: one a seed
    :return: their mean and range
    """
    return f"{values.mean():.3g} ({values.min():.3g} to {values.max():.3g})"


def draw(results: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """
    :param results: by environment, condition and figure
    :param path: of the PNG
    """
    shown = ("violating steps in training, per 1000", "violating steps after, per 1000", "task return")
    figure, axes = plt.subplots(len(results), len(shown), figsize=(11, 2.8 * len(results)), squeeze=False)
    for row, (env_id, conditions) in zip(axes, results.items(), strict=True):
        for axis, name in zip(row, shown, strict=True):
            for place, condition in enumerate(conditions):
                values = conditions[condition][name]
                axis.bar(place, np.mean(values), color=f"C{place}", alpha=0.6)
                axis.plot([place] * len(values), values, "k.", markersize=4)
            axis.set_xticks(range(len(conditions)), list(conditions), fontsize=7)
            axis.set_title(f"{env_id}: {name}", fontsize=8)
    figure.tight_layout()
    plots.save(figure, path)


def main() -> None:
    """Train what is missing, evaluate, and write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents a condition")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the steps of each environment")
    parser.add_argument("--only", choices=TASKS, action="append", help="environments. Default: all")
    parser.add_argument("--episodes", type=int, default=50, help="test episodes an agent")
    parser.add_argument(
        "--folder", type=Path, default=Path("logs/benchmarks/continuous"), help="where the runs are kept"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()

    env_ids = arguments.only or list(TASKS)
    work = [
        (seed, env_id, condition) for seed in range(arguments.seeds) for env_id in env_ids for condition in CONDITIONS
    ]
    steps = {env_id: round(arguments.fraction * TASKS[env_id].timesteps) for env_id in env_ids}
    results: dict[str, dict[str, dict[str, list[float]]]] = {e: {c: {} for c in CONDITIONS} for e in env_ids}
    with Progress() as progress:
        task = progress.add_task("training and evaluating", total=len(work))
        for seed, env_id, condition in work:
            path = train(env_id, condition, seed, steps[env_id], arguments.folder)
            for name, value in figures(path, steps[env_id], arguments.episodes).items():
                results[env_id][condition].setdefault(name, []).append(value)
            progress.advance(task)
    for env_id, conditions in results.items():
        title = f"{TASKS[env_id].algo.upper()} on {env_id}, {steps[env_id]:,} steps, {arguments.seeds} seeds"
        table = Table("", *CONDITIONS, title=f"{title}: mean (range)")
        for name in conditions[CONDITIONS[0]]:
            table.add_row(name, *(summary(np.array(conditions[c][name])) for c in CONDITIONS))
        Console(width=130).print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "continuous.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(results, arguments.output / "continuous.png")


if __name__ == "__main__":
    main()
