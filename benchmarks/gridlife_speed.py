"""
How fast GridLife is, against CartPole in the same run.

``python benchmarks/gridlife_speed.py`` prints a table and writes ``benchmarks/results/gridlife_speed.json``. Actions
are random and resets are included. All candidates take turns, so that a change of the machine's speed meets each of
them; a figure is the median over the turns, in steps a second of the process's own CPU time, on one core.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env

import persist_sb3
from persist_sb3.envs.batch import Backend, GridLifeCore
from persist_sb3.envs.vector import GridLifeVecEnv

RESULTS = Path(__file__).parent / "results" / "gridlife_speed.json"
#: What is promised: a candidate, against what, and at least how many times as fast (or steps a second).
PROMISES = [
    ("GridLife-v0, 8 in DummyVecEnv", "CartPole-v1, 8 in DummyVecEnv", 1.0),
    ("GridLife-v0, env.step", None, 250_000),
    ("core, 8 worlds, numba", None, 2_000_000),
    ("core, 64 worlds, numba", None, 5_000_000),
]
REFERENCE = "CartPole-v1, 8 in DummyVecEnv"

# One turn: how many steps it made.
Turn = Callable[[], int]


def single(env_id: str, steps: int) -> Turn:
    """``env.step`` of one environment without wrappers."""
    env = gym.make(env_id).unwrapped
    actions = np.random.default_rng(0).integers(0, int(env.action_space.n), steps)  # type: ignore[attr-defined]
    env.reset(seed=0)

    def turn() -> int:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return steps

    return turn


def batched(step: Callable[[NDArray[np.intp]], object], actions: NDArray[np.intp]) -> Turn:
    """One call of ``step`` for each row of ``actions``, ``(steps, n)``."""

    def turn() -> int:
        for row in actions:
            step(row)
        return actions.size

    return turn


def dummy(env_id: str, num_envs: int, steps: int) -> Turn:
    """SB3's DummyVecEnv with Monitor, as ``make_vec_env`` makes it."""
    envs = make_vec_env(env_id, num_envs, seed=0)
    actions = np.random.default_rng(0).integers(0, int(envs.action_space.n), (steps, num_envs))  # type: ignore[attr-defined]
    envs.reset()
    return batched(envs.step, actions)


def native(num_envs: int, steps: int) -> Turn:
    """SB3's VecEnv on the batch core."""
    envs = GridLifeVecEnv(num_envs)
    envs.seed(0)
    actions = np.random.default_rng(0).integers(0, 5, (steps, num_envs))
    envs.reset()
    return batched(envs.step, actions)


def core(num_envs: int, backend: Backend, steps: int) -> Turn:
    """The batch core by itself."""
    worlds = GridLifeCore(num_envs, backend=backend)
    worlds.seed(range(num_envs))
    actions = np.random.default_rng(0).integers(0, 5, (steps, num_envs))
    worlds.begin()
    return batched(worlds.step, actions)


def candidates() -> dict[str, Turn]:
    """All that is compared, by name."""
    turns = {
        f"{env_id}, env.step": single(env_id, 20_000) for env_id in ("CartPole-v1", "GridLife-v0", "GridLifeFlat-v0")
    }
    for env_id in ("CartPole-v1", "GridLife-v0", "GridLifeFlat-v0"):
        turns[f"{env_id}, 8 in DummyVecEnv"] = dummy(env_id, 8, 2_500)
    turns["GridLife-v0, 8 in GridLifeVecEnv"] = native(8, 5_000)
    for num_envs, steps in ((8, 50_000), (64, 10_000), (512, 1_000)):
        turns[f"core, {num_envs} worlds, numba"] = core(num_envs, "numba", steps)
    for num_envs, steps in ((8, 500), (64, 200), (512, 50)):
        turns[f"core, {num_envs} worlds, numpy"] = core(num_envs, "numpy", steps)
    return turns


def measure(repeats: int) -> dict[str, list[float]]:
    """Steps a second of each candidate in each round."""
    turns = candidates()
    for turn in turns.values():
        turn()
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repeats):
        for name, turn in turns.items():
            began = time.process_time()
            steps = turn()
            rates[name].append(steps / (time.process_time() - began))
    return rates


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: 9)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()

    rates = measure(options.repeats)
    rounds = range(options.repeats)
    rows = {
        name: {
            "steps_per_second": statistics.median(rate),
            "ratio": statistics.median(rate[i] / rates[REFERENCE][i] for i in rounds),
        }
        for name, rate in rates.items()
    }
    table = Table("", "steps/s", "of CartPole in DummyVecEnv", title="GridLife, one core, random actions")
    for name, row in rows.items():
        table.add_row(name, f"{row['steps_per_second']:,.0f}", f"{row['ratio']:.2f}")
    console = Console()
    console.print(table)

    promises = []
    for name, against, least in PROMISES:
        reached = statistics.median(rates[name][i] / (rates[against][i] if against else 1.0) for i in rounds)
        promises.append(
            {"what": name, "against": against, "at_least": least, "reached": reached, "kept": reached >= least}
        )
        verdict = "[green]kept[/]" if reached >= least else "[red]missed[/]"
        unit = f" times {against}" if against else " steps/s"
        console.print(f"{verdict}  {name}: {reached:,.2f}{unit}, promised {least:,}")

    record = {
        "version": persist_sb3.__version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "repeats": options.repeats,
        "candidates": rows,
        "promises": promises,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial = options.output.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, options.output)


if __name__ == "__main__":
    main()
