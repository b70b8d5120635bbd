"""
What each intrinsic reward adds on top of the homeostat: survival of PPO on GridLife with the shipped layers, and with
one bonus more: `RNDBonus`, `SurpriseBonus` as written, which pays for what is foreseen, seeking surprise, or
`EmpowermentBonus`. Everything else is that of ``persist_sb3/hyperparams/ppo.yml``, but for networks, which are SB3's.

Every agent is trained by ``train.py`` and evaluated on layouts that it has not seen. Agents that are there already are
neither trained nor evaluated again, so the benchmark can be interrupted. The weights are the layers' ``weight``; of all
but empowerment a weight of 1 makes the discounted sum of the bonus vary by 1, and empowerment is at most its weight a
step. Beside the survival: the share of what was paid in training that was intrinsic, and the rank correlation between
an episode's bonus a step and how long it stayed alive, in the second half of training. Intervals are over seeds;
``gain`` in the JSON is an agent with a bonus minus the one without it of the same seed::

    python -m benchmarks.intrinsic                                  # 3 seeds, 100k steps, 100 test episodes an agent
    python -m benchmarks.intrinsic --seeds 1 --timesteps 20000      # a quick look
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.agents import FIGURES, PLAIN, Records, evaluate_run, intervals, train
from benchmarks.kept import kept
from persist_sb3 import hyperparams
from persist_sb3.metrics import read_episodes
from persist_sb3.summary import training_figures

ENV = "GridLife-v0"
SURPRISE, WORLD = "persist_sb3.wrappers.VecSurpriseBonus", "persist_sb3.callbacks.WorldModelCallback"
RND, EMPOWERMENT = "persist_sb3.callbacks.RNDCallback", "persist_sb3.callbacks.EmpowermentCallback"
#: A small model, which learns at every eighth step: five large ones would cost more than the agent.
SMALL = {WORLD: {"net_arch": [64, 64], "members": 2, "train_freq": 8}}
#: Half as many questions as by default, to a model that has taken its steps after an eighth of 100k.
ASK = {EMPOWERMENT: {"horizon": 2, "train_freq": 32, "min_updates": 200}}
#: The bonus of each condition, and the callbacks that train what it needs.
CONDITIONS: dict[str, tuple[dict[str, Any], list[Any]] | None] = {
    "homeostat": None,
    "+ RND": ({"persist_sb3.wrappers.VecRNDBonus": {"weight": 0.3}}, [RND]),
    "+ surprise": ({SURPRISE: {"weight": 3.0, "beta": 0.0}}, [SMALL]),
    "+ seeking surprise": ({SURPRISE: {"weight": 3.0, "beta": 0.0, "seek": True}}, [SMALL]),
    "+ empowerment": ({"persist_sb3.wrappers.VecEmpowermentBonus": {"weight": 0.3}}, [SMALL, ASK]),
}
SHARE, CURVE = "intrinsic share of the reward", "bonus a step against time alive, rank correlation"
#: Of training, with how they are written.
PAID = {SHARE: ".2f", CURVE: ".2f"}


def options(condition: str) -> list[str]:
    """
    :param condition: a key of ``CONDITIONS``
    :return: what ``train.py`` is told
    """
    bonus = CONDITIONS[condition]
    if bonus is None:
        return ["-params", *PLAIN]
    layer, learning = bonus
    layers = [*hyperparams.load("ppo")[ENV]["vec_env_wrapper"], layer]
    callbacks = ["persist_sb3.callbacks.MetricsCallback", *learning]
    return ["-params", f"vec_env_wrapper:{layers!r}", f"callback:{callbacks!r}", *PLAIN]


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


def measure(path: Path, episodes: int) -> dict[str, float]:
    """
    :param path: the run's folder
    :param episodes: of its test
    :return: the figures
    """
    test, training = evaluate_run(path, episodes), read_episodes(path / "persist.jsonl")
    figures = {name: figure(test, training) for name, (figure, _) in FIGURES.items()}
    return figures | paid(training)


def paid(training: Records) -> dict[str, float]:
    """
    :param training: episodes of a training
    :return: what the intrinsic reward was in it; nothing if there was none
    """
    share = training_figures(training)["intrinsic_share"]
    if share is None:
        return {}
    late = [episode for episode in training if episode.timestep > 0.5 * max(e.timestep for e in training)]
    bonus = [episode.reward_terms["intrinsic"] / episode.length for episode in late]
    return {SHARE: share, CURVE: float(spearmanr(bonus, [episode.duration for episode in late])[0])}


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
        rows: dict[tuple[str, int], dict[str, float]] = {}
        for item, path in zip(work, paths, strict=True):
            rows[item] = kept(path / f"figures-{arguments.episodes}.json", partial(measure, path, arguments.episodes))
            progress.advance(evaluating)

    table = Table(title=f"PPO on {ENV}, {arguments.timesteps:,} steps, {arguments.seeds} seeds: mean [95 % interval]")
    table.add_column("")
    for condition in conditions:
        table.add_column(condition, justify="right")
    results: dict[str, Any] = {key: value for key, value in vars(arguments).items() if isinstance(value, int)}
    seeds = range(arguments.seeds)
    for name, style in ({name: style for name, (_, style) in FIGURES.items()} | PAID).items():
        scores = {c: np.array([rows[c, seed][name] for seed in seeds]) for c in conditions if name in rows[c, 0]}
        if not scores:
            continue
        estimates = intervals(scores)
        cells = {c: f"{mean:{style}} [{low:{style}}, {high:{style}}]" for c, (mean, low, high) in estimates.items()}
        table.add_row(name, *(cells.get(condition, "") for condition in conditions))
        results[name] = {c: {"mean": estimates[c], "seeds": scores[c].tolist()} for c in scores}
        alone = scores.get("homeostat")
        if alone is not None:
            gains = intervals({c: values - alone for c, values in scores.items() if c != "homeostat"})
            for condition, gain in gains.items():
                results[name][condition]["gain"] = gain
    Console(width=150).print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "intrinsic.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
