"""
GridLife can be survived: the planner that knows the true dynamics, against random actions, on the same test layouts.

``python benchmarks/oracle.py`` prints a table and writes ``benchmarks/results/oracle.json``. Intervals are Wilson's, of
95 %; planning times are of the process's own CPU time, on one core, for all episodes side by side.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stable_baselines3.common.type_aliases import PolicyPredictor

from persist_sb3.envs.oracle import BeamPlanner, OraclePolicy
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import survival_curve
from persist_sb3.summary import deaths, wilson_interval, without_nan

RESULTS = Path(__file__).parent / "results" / "oracle.json"


class Random:
    """Actions drawn uniformly, in the place of a model."""

    def __init__(self, venv: GridLifeVecEnv, seed: int) -> None:
        self._venv = venv
        venv.action_space.seed(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """One action an environment."""
        return np.array([self._venv.action_space.sample() for _ in range(self._venv.num_envs)]), state


def measure(name: str, agent: PolicyPredictor, venv: GridLifeVecEnv, seed: int, bar: Progress) -> dict[str, Any]:
    """
    :param name: of the agent
    :param agent: who acts
    :param venv: where, one episode in each environment
    :param seed: of the first environment
    :param bar: shows how far it is
    :return: what the table shows
    """
    task = bar.add_task(name, total=venv.params.horizon)
    began = time.process_time()
    episodes = evaluate(agent, venv, venv.num_envs, seed=seed, progress=lambda _: bar.advance(task))
    seconds = time.process_time() - began
    bar.update(task, completed=venv.params.horizon)
    records = [episode.record for episode in episodes]
    survived = sum(record.survived for record in records)
    return {
        "survived": survived,
        "share": survived / len(records),
        "interval": wilson_interval(survived, len(records)),
        "median_time_to_violation": survival_curve(records).median,
        "task_return": float(np.mean([record.task_return for record in records])),
        "killed_by": deaths(records),
        "seconds_per_episode": seconds / len(records),
    }


def main() -> None:
    """Play, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200, help="test layouts (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the first environment; others follow (default: 0)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()

    venv = GridLifeVecEnv(options.episodes, split="test")
    horizon = venv.params.horizon
    agents: dict[str, PolicyPredictor] = {
        "random": Random(venv, options.seed),
        "oracle": OraclePolicy(BeamPlanner(venv.params), venv.snapshot),
        "oracle + items": OraclePolicy(BeamPlanner(venv.params, task_weight=3.0), venv.snapshot),
    }
    with Progress() as bar:
        rows = {name: measure(name, agent, venv, options.seed, bar) for name, agent in agents.items()}

    title = f"GridLife-v0, {options.episodes} test layouts, {horizon} steps"
    table = Table("", "survive", "95 %", "median life", "items", "s/episode", title=title)
    for name, row in rows.items():
        low, high = row["interval"]
        table.add_row(
            name,
            f"{row['share']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{row['median_time_to_violation']:.0f}" if row["survived"] < options.episodes / 2 else f"> {horizon}",
            f"{row['task_return']:.1f}",
            f"{row['seconds_per_episode']:.2f}",
        )
    Console().print(table)
    record = {"episodes": options.episodes, "seed": options.seed, "agents": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    written = options.output.with_suffix(".partial")
    written.write_text(json.dumps(without_nan(record), indent=2) + "\n")
    os.replace(written, options.output)


if __name__ == "__main__":
    main()
