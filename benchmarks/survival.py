"""
Who stays alive: PPO on GridLife as shipped, with the homeostat and equivariant networks, against PPO with SB3's
networks on the task reward alone; against each of the two parts without the other; and against five times the raw
deviation reward on top of the task, which pays the agent to die.

Every agent is trained by ``train.py`` with the hyperparameters in ``persist_sb3/hyperparams/ppo.yml``, and evaluated on
layouts that it has not seen. Agents that are there already are not trained again, so the benchmark can be interrupted::

    python -m benchmarks.survival                                  # 5 seeds, 300k steps, 200 test episodes an agent
    python -m benchmarks.survival --seeds 2 --timesteps 50000      # a quick look
    python -m benchmarks.survival --only "persist-sb3"             # some conditions
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.agents import FIGURES, PLAIN, Records, evaluate_run, intervals, train
from persist_sb3 import plots
from persist_sb3.metrics import read_episodes

ENV = "GridLife-v0"
INTERNAL = "persist_sb3.wrappers.VecInternalState"
DEVIATION = {"persist_sb3.wrappers.VecHomeostatReward": {"w": [1.0, 0.5, 1.5], "weight": 5.0}}

# What `train.py` is told; nothing, for what is shipped. InternalState changes no reward.
CONDITIONS: dict[str, list[str]] = {
    "task reward": ["-params", f"vec_env_wrapper:{[INTERNAL]}", *PLAIN],
    "raw deviation": ["-params", f"vec_env_wrapper:{[INTERNAL, DEVIATION]}", *PLAIN],
    "homeostat, plain": ["-params", *PLAIN],
    "task reward, equivariant": ["-params", f"vec_env_wrapper:{[INTERNAL]}"],
    "persist-sb3": [],
}


def measure(condition: str, seed: int, timesteps: int, episodes: int, folder: Path) -> tuple[Records, Records]:
    """
    :param condition: a key of ``CONDITIONS``
    :param seed: of the run
    :param timesteps: of the run
    :param episodes: of the test
    :param folder: of all runs
    :return: episodes of the training and of the test
    """
    logs = folder / str(timesteps) / condition.replace(", ", "-").replace(" ", "-") / f"seed-{seed}"
    path = train(ENV, "ppo", CONDITIONS[condition], seed, timesteps, logs)
    return read_episodes(path / "persist.jsonl"), evaluate_run(path, episodes)


def main() -> None:
    """Train what is missing, evaluate, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=300_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=200, help="test episodes an agent")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one core each")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CONDITIONS, help="conditions. Default: all")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/survival"), help="where the runs are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()

    chosen = arguments.only or list(CONDITIONS)
    work = [(condition, seed) for condition in chosen for seed in range(arguments.seeds)]
    trainings, tests = {}, {}
    with Progress() as progress, ThreadPoolExecutor(arguments.jobs) as pool:
        going = progress.add_task("training and testing", total=len(work))
        futures = [
            pool.submit(measure, *item, arguments.timesteps, arguments.episodes, arguments.folder) for item in work
        ]
        for item, future in zip(work, futures, strict=True):
            trainings[item], tests[item] = future.result()
            progress.advance(going)

    table = Table(title=f"PPO on {ENV}, {arguments.timesteps:,} steps, {arguments.seeds} seeds: mean [95 % interval]")
    table.add_column("")
    for condition in chosen:
        table.add_column(condition, justify="right")
    results: dict[str, object] = {key: value for key, value in vars(arguments).items() if isinstance(value, int)}
    for name, (figure, style) in FIGURES.items():
        scores = {
            condition: np.array(
                [figure(tests[condition, seed], trainings[condition, seed]) for seed in range(arguments.seeds)]
            )
            for condition in chosen
        }
        estimates = intervals(scores)
        table.add_row(
            name,
            *(f"{mean:{style}} [{low:{style}}, {high:{style}}]" for mean, low, high in estimates.values()),
        )
        results[name] = {
            condition: {"mean": estimates[condition], "seeds": scores[condition].tolist()} for condition in chosen
        }
    Console(width=130).print(table)

    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "survival.json").write_text(json.dumps(results, indent=2) + "\n")
    curves = {
        condition: [record for seed in range(arguments.seeds) for record in tests[condition, seed]]
        for condition in chosen
    }
    plots.save(plots.survival(curves), arguments.output / "survival.png")


if __name__ == "__main__":
    main()
