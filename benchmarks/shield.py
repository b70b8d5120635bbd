"""
What each part adds: agents on GridLife with the scent of food, trained with and without the homeostat, the shield, and
demonstrations by the planner, all evaluated on layouts that they have not seen. Networks are equivariant, as shipped,
and SB3's own where a condition says "plain" and for "task reward".

Beside them stands what others do: a fixed price of dying ("death penalty"), one that is learned so that at most one in
20 episodes ends in death ("PPO-Lagrangian"); and, as the ceiling of masking, MaskablePPO with the masks of a planner
that knows the true dynamics ("oracle masks").

Every agent is trained by ``train.py`` with the shipped hyperparameters. Agents that are there already are not trained
again, so the benchmark can be interrupted::

    python -m benchmarks.shield                               # 5 seeds, 300k steps, 200 test episodes an agent
    python -m benchmarks.shield --seeds 2 --timesteps 50000   # a quick look
    python -m benchmarks.shield --only "task reward" "shield" # some conditions
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.agents import FIGURES, PLAIN, Records, evaluate_run, intervals, train
from persist_sb3 import hyperparams, plots
from persist_sb3.metrics import read_episodes

ENV = "GridLifeScent-v0"
#: Demonstrations are recorded once, on training layouts.
EPISODES = 20
INTERNAL, HOMEOSTAT, SHIELD = hyperparams.load("ppo")[ENV]["vec_env_wrapper"]
METRICS, VIABILITY = hyperparams.load("ppo")[ENV]["callback"]
CLONING = "persist_sb3.callbacks.BehaviourCloningCallback"
BARE = ["-params", f"vec_env_wrapper:{[INTERNAL]}", f"callback:{[METRICS]}"]
#: Price of dying, which is a single step: as much as the homeostat's.
PENALTY = {"persist_sb3.wrappers.VecCostPenalty": {"weight": 20.0}}
#: A multiplier that the price of dying is reached with after a third of 300k steps, if most episodes end in death.
LAGRANGE = {"persist_sb3.callbacks.LagrangeCallback": {"target": 0.05, "ki": 0.5, "kp": 0.5, "maximum": 50.0}}
ORACLE = "persist_sb3.envs.oracle.OracleMasks"
UNSHIELDED = ["-params", f"vec_env_wrapper:{[INTERNAL, HOMEOSTAT]}", f"callback:{[METRICS]}"]


def conditions(demonstrations: Path) -> dict[str, tuple[str, list[str]]]:
    """
    :param demonstrations: their file
    :return: algorithm, and what ``train.py`` is told, by name
    """
    cloning = {CLONING: {"demonstrations": str(demonstrations)}}
    learning = {name: {**parameters, "demonstrations": str(demonstrations)} for name, parameters in VIABILITY.items()}
    # The critic is asked once it has seen harm, too, of which the demonstrations show none.
    patient = {name: {**parameters, "min_updates": 3000} for name, parameters in SHIELD.items()}
    return {
        "task reward": ("ppo", [*BARE, *PLAIN]),
        "task reward, equivariant": ("ppo", BARE),
        "homeostat, plain": ("ppo", [*UNSHIELDED, *PLAIN]),
        "homeostat": ("ppo", UNSHIELDED),
        "death penalty": ("ppo", ["-params", f"vec_env_wrapper:{[INTERNAL, PENALTY]}", f"callback:{[METRICS]}"]),
        "PPO-Lagrangian": (
            "ppo",
            [
                "-params",
                f"vec_env_wrapper:{[INTERNAL, 'persist_sb3.wrappers.VecCostPenalty']}",
                f"callback:{[METRICS, LAGRANGE]}",
            ],
        ),
        "oracle masks": (
            "ppo_mask",
            ["-params", f"vec_env_wrapper:{[INTERNAL, HOMEOSTAT, ORACLE]}", f"callback:{[METRICS]}"],
        ),
        "shield": ("ppo", []),
        "shield, masks": ("ppo_mask", []),
        "homeostat, demonstrations": ("ppo", [*UNSHIELDED[:-1], f"callback:{[METRICS, cloning]}"]),
        "shield, masks, demonstrations": (
            "ppo_mask",
            [
                "-params",
                f"vec_env_wrapper:{[INTERNAL, HOMEOSTAT, patient]}",
                f"callback:{[METRICS, learning, cloning]}",
            ],
        ),
    }


def record(path: Path) -> None:
    """
    :param path: where the demonstrations are to be
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "persist_sb3.demonstrate", "--env", ENV, "--episodes", str(EPISODES)]
        subprocess.run([*command, "--task-weight", "3", "--output", str(path)], check=True, stdout=subprocess.DEVNULL)


def measure(
    algo: str, options: list[str], seed: int, timesteps: int, episodes: int, folder: Path, name: str
) -> tuple[Records, Records, Records]:
    """
    :param algo: rl-zoo3's name of the algorithm
    :param options: what ``train.py`` is told
    :param seed: of the run
    :param timesteps: of the run
    :param episodes: of each test
    :param folder: of all runs
    :param name: of the condition
    :return: episodes of the training, of the test, and of the test without the shield
    """
    logs = folder / str(timesteps) / name.replace(", ", "-").replace(" ", "-") / f"seed-{seed}"
    path = train(ENV, algo, options, seed, timesteps, logs)
    test = evaluate_run(path, episodes)
    bare = evaluate_run(path, episodes, shield=False) if "shield" in name else test
    return read_episodes(path / "persist.jsonl"), test, bare


def main() -> None:
    """Record and train what is missing, evaluate, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=300_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=200, help="test episodes an agent")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one core each")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="conditions. Default: all")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/shield"), help="where the runs are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()

    demonstrations = (own.folder / "demonstrations.npz").resolve()
    everything = conditions(demonstrations)
    if own.only and (unknown := set(own.only) - set(everything)):
        parser.error(f"unknown conditions {sorted(unknown)}; there are {list(everything)}")
    chosen = {name: everything[name] for name in own.only or everything}
    if any(name.endswith("demonstrations") for name in chosen):
        record(demonstrations)
    work = [(name, seed) for seed in range(own.seeds) for name in chosen]
    tests, bare, trainings = {}, {}, {}
    with Progress() as progress, ThreadPoolExecutor(own.jobs) as pool:
        going = progress.add_task("training and testing", total=len(work))
        futures = [
            pool.submit(measure, *chosen[name], seed, own.timesteps, own.episodes, own.folder, name)
            for name, seed in work
        ]
        for key, future in zip(work, futures, strict=True):
            trainings[key], tests[key], bare[key] = future.result()
            progress.advance(going)

    table = Table(title=f"{ENV}, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]")
    table.add_column("")
    for name in chosen:
        table.add_column(name, justify="right")
    results: dict[str, object] = {key: getattr(own, key) for key in ("seeds", "timesteps", "episodes")}
    figures = {**FIGURES, "survival share, shield off": FIGURES["survival share"]}
    for figure, (score, style) in figures.items():
        source = bare if figure.endswith("off") else tests
        scores = {
            name: np.array([score(source[name, seed], trainings[name, seed]) for seed in range(own.seeds)])
            for name in chosen
        }
        estimates = intervals(scores)
        table.add_row(figure, *(f"{m:{style}} [{low:{style}}, {high:{style}}]" for m, low, high in estimates.values()))
        results[figure] = {name: {"mean": estimates[name], "seeds": scores[name].tolist()} for name in chosen}
    rates = {
        name: float(
            np.mean([(e.interventions or 0) / e.length for seed in range(own.seeds) for e in tests[name, seed]])
        )
        for name in chosen
    }
    table.add_row("intervention rate", *(f"{rate:.3f}" for rate in rates.values()))
    results["intervention rate"] = rates
    Console(width=200).print(table)

    own.output.mkdir(parents=True, exist_ok=True)
    (own.output / "shield.json").write_text(json.dumps(results, indent=2) + "\n")
    curves = {name: [record for seed in range(own.seeds) for record in tests[name, seed]] for name in chosen}
    plots.save(plots.survival(curves), own.output / "shield.png")


if __name__ == "__main__":
    main()
