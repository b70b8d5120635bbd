"""What the benchmarks of trained agents share: train through ``train.py``, evaluate on unseen layouts, average."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from rliable import library, metrics
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from benchmarks.kept import folder_name, kept, save
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import EpisodeRecord, survival_curve
from persist_sb3.runs import Run
from persist_sb3.wrappers.action_shield import ActionShieldLayer, VecActionShield

ROOT = Path(__file__).resolve().parents[1]

#: For ``train.py`` after its ``-params``: SB3's own networks, in place of GridLife's equivariant ones.
PLAIN = ["policy:'MultiInputPolicy'", "policy_kwargs:dict(net_arch=[256, 256], activation_fn=nn.ReLU)"]

#: Attributes of a shield that lets every action pass.
SHIELD_OFF = {"min_updates": sys.maxsize}

Records = list[EpisodeRecord]
#: A mean over seeds, and the limits of its interval.
Estimate = tuple[float, float, float]
#: What is reported of an agent: from its test and its training episodes, and how it is written.
FIGURES: dict[str, tuple[Callable[[Records, Records], float], str]] = {
    "survival share": (lambda test, _: float(np.mean([e.survived for e in test])), ".3f"),
    "median time to violation": (lambda test, _: min(survival_curve(test).median, 512.0), ".0f"),
    "task return an episode": (lambda test, _: float(np.mean([e.task_return for e in test])), ".1f"),
    "task return in 512 steps alive": (
        lambda test, _: 512.0 * sum(e.task_return for e in test) / sum(e.length for e in test),
        ".1f",
    ),
    "violations while training": (lambda _, training: float(sum(e.violations for e in training)), ".0f"),
}
#: What the training of an agent cost, and the file of its run that says so.
CPU_SECONDS, COST = "CPU seconds of training", "cost.json"
STYLES = {name: style for name, (_, style) in FIGURES.items()}


class Condition(NamedTuple):
    """
    How agents are trained.

    :param options: further options of ``train.py``
    :param algo: rl-zoo3's name of the algorithm
    :param env_id: environment, if it is another than the benchmark's
    """

    options: list[str]
    algo: str = "ppo"
    env_id: str | None = None


def parse(
    description: str | None, name: str, conditions: Iterable[str], *, seeds: int, timesteps: int, episodes: int
) -> argparse.Namespace:
    """
    :param description: of the command
    :param name: of the benchmark
    :param conditions: that there are
    :param seeds: agents a condition, by default
    :param timesteps: environment steps an agent, by default
    :param episodes: test episodes an agent, by default
    :return: what is asked for
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=timesteps, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=episodes, help="test episodes an agent")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one core each")
    parser.add_argument(
        "--only", nargs="+", action="extend", metavar="NAME", choices=list(conditions), help="conditions. Default: all"
    )
    folder = Path("logs/benchmarks") / name
    parser.add_argument("--folder", type=Path, default=folder, help="where the runs are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()
    own.only = own.only or list(conditions)
    return own


def size(own: argparse.Namespace) -> dict[str, int]:
    """
    :param own: what :func:`parse` returned
    :return: how much was measured, as results tell it
    """
    return {key: getattr(own, key) for key in ("seeds", "timesteps", "episodes")}


def trained(env_id: str, conditions: Mapping[str, Condition], own: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """
    Train what is not there yet. The caller evaluates meanwhile, one run after the other, since all evaluations draw
    from PyTorch's one generator.

    :param env_id: environment
    :param conditions: by name
    :param own: what :func:`parse` returned
    :return: condition and folder of each run, seed by seed
    """
    work = [(name, seed) for seed in range(own.seeds) for name in own.only]

    def run(item: tuple[str, int]) -> Path:
        name, seed = item
        logs = own.folder / str(own.timesteps) / folder_name(name) / f"seed-{seed}"
        return train(env_id, conditions[name], seed, own.timesteps, logs)

    with ThreadPoolExecutor(own.jobs) as pool:
        paths = pool.map(run, work)
        for (name, _), path in track(zip(work, paths, strict=True), "training and testing", total=len(work)):
            yield name, path


def train(env_id: str, condition: Condition, seed: int, timesteps: int, logs: Path) -> Path:
    """
    :param env_id: environment, unless the condition names one
    :param condition: how
    :param seed: of the run
    :param timesteps: of the run
    :param logs: where the run is kept; if it is there already, it is not trained again
    :return: the run's folder
    """
    options, algo, other = condition
    env_id = other or env_id
    run = logs / algo / f"{env_id}_1"
    if not (run / f"{env_id}.zip").is_file():
        # What an interrupted training left would make rl-zoo3 choose another folder.
        shutil.rmtree(run, ignore_errors=True)
        command = [sys.executable, str(ROOT / "train.py"), "--algo", algo, "--env", env_id, "--seed", str(seed)]
        command += ["-n", str(timesteps), "--eval-freq", "-1", "--device", "cpu", "--verbose", "0", "-f", str(logs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        seconds = _cpu_seconds([*command, *options], environment)
        save({CPU_SECONDS: seconds}, run / COST)
    return run


def _cpu_seconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """
    :param command: is run, with nothing shown of what it prints
    :param environment: of it
    :return: CPU time that it took: that of the clock depends on what else the machine does
    :raises subprocess.CalledProcessError: if it fails
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime


def cost(path: Path) -> dict[str, float]:
    """
    :param path: a run's folder
    :return: what its training cost; nothing if that was not measured
    """
    return json.loads((path / COST).read_text()) if (path / COST).is_file() else {}


def evaluate_run(path: Path, episodes: int, *, shield: bool = True) -> Records:
    """
    :param path: the run's folder, where the episodes are kept; if they are there already, none is played again
    :param episodes: how many
    :param shield: False lets every action pass
    :return: evaluation episodes on test layouts, the same ones for every run
    """
    name = f"test-{episodes}.json" if shield else f"test-{episodes}-unshielded.json"
    return played(path, episodes, name, None if shield else SHIELD_OFF)


def played(
    path: Path,
    episodes: int,
    name: str,
    changed: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
) -> Records:
    """
    :param path: the run's folder
    :param episodes: how many
    :param name: of the file in it where the episodes are kept; if they are there already, none is played again
    :param changed: attributes of the run's shield that are to have other values
    :param policy: attributes of the run's policy that are to have other values
    :return: evaluation episodes on test layouts, the same ones for every run
    """
    lines = kept(
        path / name, lambda: [record.to_json() for record in _play(path, episodes, changed or {}, policy or {})]
    )
    return [EpisodeRecord.from_json(line) for line in lines]


def _play(path: Path, episodes: int, changed: Mapping[str, Any], policy: Mapping[str, Any]) -> Records:
    run = Run(path)
    venv = run.make_env(20, split="test")
    model = run.load_model(venv, seed=0)
    for attribute, value in changed.items():
        setattr(shield_layer(venv), attribute, value)
    for attribute, value in policy.items():
        setattr(model.policy, attribute, value)
    records = [episode.record for episode in evaluate(model, venv, episodes, deterministic=False, seed=1_000_000)]
    venv.close()
    return records


def shield_layer(venv: VecEnv) -> ActionShieldLayer:
    """
    :param venv: of a run
    :return: its shield
    """
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, VecActionShield):
            return venv.layer
        venv = venv.venv
    raise RuntimeError("this run has no shield that could be taken away")


def figures(test: Records, training: Records) -> dict[str, float]:
    """
    :param test: an agent's test episodes
    :param training: its training episodes
    :return: the :data:`FIGURES`
    """
    return {name: figure(test, training) for name, (figure, _) in FIGURES.items()}


def intervals(scores: dict[str, NDArray[np.float64]]) -> dict[str, Estimate]:
    """
    :param scores: one score a seed, by condition
    :return: mean over seeds, and the limits of its 95 % bootstrap interval (Agarwal et al., NeurIPS 2021)
    """
    matrices = {name: values[:, None] for name, values in scores.items()}
    means, limits = library.get_interval_estimates(
        matrices,
        lambda matrix: np.array([metrics.aggregate_mean(matrix)]),
        reps=5_000,
        random_state=np.random.RandomState(0),
    )
    return {name: (float(means[name][0]), float(limits[name][0, 0]), float(limits[name][1, 0])) for name in scores}


def flat_ppo(env: VecEnv, seed: int, net_arch: Sequence[int] = (256, 256)) -> PPO:
    """
    :param env: GridLife with flat observations, in its layers
    :param seed: of the agent
    :param net_arch: sizes of the hidden layers
    :return: PPO with the hyperparameters that are shipped for GridLife, but a constant learning rate
    """
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=7e-4,
        n_steps=256,
        batch_size=256,
        gamma=0.98,
        gae_lambda=0.9,
        policy_kwargs={"net_arch": list(net_arch), "activation_fn": torch.nn.ReLU},
        seed=seed,
        device="cpu",
    )
