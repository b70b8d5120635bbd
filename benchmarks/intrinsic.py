"""
What each intrinsic reward adds on top of the homeostat: survival of PPO on GridLife with the shipped layers, and with
one bonus more: `RNDBonus`, `SurpriseBonus` as written, which pays for what is foreseen, or seeking surprise. Everything
else is that of ``persist_sb3/hyperparams/ppo.yml``.

Every agent is trained by ``train.py`` and evaluated on layouts that it has not seen. Agents that are there already are
not trained again, so the benchmark can be interrupted. The weights are the layers' ``weight``; a weight of 1 makes the
discounted sum of the bonus vary by 1::

    python -m benchmarks.intrinsic                                  # 3 seeds, 100k steps, 100 test episodes an agent
    python -m benchmarks.intrinsic --seeds 1 --timesteps 20000      # a quick look
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.agents import FIGURES, evaluate_run, intervals, train
from persist_sb3 import hyperparams
from persist_sb3.metrics import read_episodes

ENV = "GridLife-v0"
SURPRISE, WORLD = "persist_sb3.wrappers.VecSurpriseBonus", "persist_sb3.callbacks.WorldModelCallback"
#: A small model, which learns at every eighth step: five large ones would cost more than the agent.
SMALL = {"net_arch": [64, 64], "members": 2, "train_freq": 8}
#: The bonus of each condition, and the callback that trains what it needs.
CONDITIONS: dict[str, tuple[dict[str, Any], Any] | None] = {
    "homeostat": None,
    "+ RND": ({"persist_sb3.wrappers.VecRNDBonus": {"weight": 0.3}}, "persist_sb3.callbacks.RNDCallback"),
    "+ surprise": ({SURPRISE: {"weight": 3.0, "beta": 0.0}}, {WORLD: SMALL}),
    "+ seeking surprise": ({SURPRISE: {"weight": 3.0, "beta": 0.0, "seek": True}}, {WORLD: SMALL}),
}


def options(condition: str) -> list[str]:
    """
    :param condition: a key of ``CONDITIONS``
    :return: what ``train.py`` is told
    """
    bonus = CONDITIONS[condition]
    if bonus is None:
        return []
    layer, callback = bonus
    layers = [*hyperparams.load("ppo")[ENV]["vec_env_wrapper"], layer]
    callbacks = ["persist_sb3.callbacks.MetricsCallback", callback]
    return ["-params", f"vec_env_wrapper:{layers!r}", f"callback:{callbacks!r}"]


def train_condition(condition: str, seed: int, timesteps: int, folder: Path) -> Path:
    """
    :param condition: a key of ``CONDITIONS``
    :param seed: of the run
    :param timesteps: of the run
    :param folder: of all runs
    :return: the run's folder
    """
    logs = folder / condition.replace("+ ", "").replace(" ", "-") / f"seed-{seed}"
    return train(ENV, "ppo", options(condition), seed, timesteps, logs)


def main() -> None:
    """Train what is missing, evaluate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=100_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=100, help="test episodes an agent")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one core each")
    parser.add_argument("--only", choices=CONDITIONS, action="append", help="conditions. Default: all")
    parser.add_argument(
        "--folder", type=Path, default=Path("logs/benchmarks/intrinsic"), help="where the runs are kept"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()

    conditions = arguments.only or list(CONDITIONS)
    work = [(condition, seed) for seed in range(arguments.seeds) for condition in conditions]
    folder = arguments.folder / str(arguments.timesteps)
    with Progress() as progress, ThreadPoolExecutor(arguments.jobs) as pool:
        training = progress.add_task("training", total=len(work))
        futures = [pool.submit(train_condition, *item, arguments.timesteps, folder) for item in work]
        paths = []
        for future in futures:
            paths.append(future.result())
            progress.advance(training)
        evaluating = progress.add_task("evaluating", total=len(work))
        tests, trainings = {}, {}
        for item, path in zip(work, paths, strict=True):
            tests[item] = evaluate_run(path, arguments.episodes)
            trainings[item] = read_episodes(path / "persist.jsonl")
            progress.advance(evaluating)

    table = Table(title=f"PPO on {ENV}, {arguments.timesteps:,} steps, {arguments.seeds} seeds: mean [95 % interval]")
    table.add_column("")
    for condition in conditions:
        table.add_column(condition, justify="right")
    results: dict[str, Any] = {key: value for key, value in vars(arguments).items() if isinstance(value, int)}
    for name, (figure, style) in FIGURES.items():
        scores = {
            condition: np.array(
                [figure(tests[condition, seed], trainings[condition, seed]) for seed in range(arguments.seeds)]
            )
            for condition in conditions
        }
        estimates = intervals(scores)
        cells = [f"{mean:{style}} [{low:{style}}, {high:{style}}]" for mean, low, high in estimates.values()]
        table.add_row(name, *cells)
        results[name] = {c: {"mean": estimates[c], "seeds": scores[c].tolist()} for c in conditions}
    Console(width=150).print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "intrinsic.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
