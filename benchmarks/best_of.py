"""
How much better an actor's proposals are if its critics choose among them: SAC's agents on
``GridLifeContinuousScent-v0``, which it shares with ``benchmarks.continuous``, each on the same test layouts with
policies that differ in their ``best_of`` alone, with the shield and without it; and how long a decision takes, for 8
environments at once, as a ratio to the actor's own::

    python -m benchmarks.best_of
    python -m benchmarks.best_of --seeds 1 --episodes 40 --best-of 1 16   # a quick look
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.agents import SHIELD_OFF, played
from benchmarks.continuous import TASKS, trained
from benchmarks.inset import STYLES, figures
from benchmarks.kept import save
from benchmarks.tables import tabulate
from persist_sb3.runs import Run

ENV = "GridLifeContinuousScent-v0"
WITHOUT, TIME = "survival share, shield off", "time of a decision, ratio"
#: Decisions that are timed, one of each kind after the other.
DECISIONS = 300


def ratios(path: Path, choices: list[int]) -> dict[int, float]:
    """
    :param path: a run's folder
    :param choices: values of ``best_of``
    :return: time of a decision with each, as a ratio to that of the actor alone
    """
    run = Run(path)
    venv = run.make_env(8, split="test")
    model: Any = run.load_model(venv, seed=0)
    observation: Any = venv.reset()
    spent = dict.fromkeys([1, *choices], 0.0)
    for _ in range(DECISIONS):
        for choice in spent:
            model.policy.best_of = choice
            start = time.process_time()
            model.predict(observation)
            spent[choice] += time.process_time() - start
    venv.close()
    return {choice: spent[choice] / spent[1] for choice in choices}


def main() -> None:
    """Train and play what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="agents")
    parser.add_argument("--episodes", type=int, default=200, help="test episodes an agent")
    parser.add_argument("--best-of", type=int, nargs="+", default=[1, 4, 16, 64], help="to compare")
    parser.add_argument("--timesteps", type=int, default=300_000, help="of the agents' training")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/problems"), help="where the runs are")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the result goes")
    own = parser.parse_args()
    torch.set_num_threads(1)

    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(own.seeds):
        path = trained(ENV, TASKS[ENV], "homeostat + shield", seed, own.timesteps, own.folder)
        times = ratios(path, own.best_of)
        for choice in own.best_of:
            name, policy = f"test-{own.episodes}-best-of-{choice}", {"best_of": choice}
            on = figures(played(path, own.episodes, f"{name}.json", None, policy))
            off = figures(played(path, own.episodes, f"{name}-unshielded.json", SHIELD_OFF, policy))
            found = {**on, WITHOUT: off["survival share"], TIME: times[choice]}
            rows.setdefault(f"best of {choice}", []).append(found)
    title = f"{ENV}, {own.seeds} agents, {own.episodes} test episodes each: mean [95 % interval]"
    table, results = tabulate(title, rows, {**STYLES, WITHOUT: ".3f", TIME: ".2f"})
    Console(width=160).print(table)
    sizes = {"seeds": own.seeds, "timesteps": own.timesteps, "episodes": own.episodes}
    save({**sizes, **results}, own.output / "best_of.json")


if __name__ == "__main__":
    main()
