"""
How far inside of what passes a refused Box action is best projected to: SAC's shielded agents on
``GridLifeContinuousScent-v0``, as ``benchmarks.continuous`` has trained them, each on the same test layouts under
shields that differ in their ``inset`` alone, and with every action passing::

    python -m benchmarks.continuous --only GridLifeContinuousScent-v0 --conditions "homeostat + shield"   # agents
    python -m benchmarks.inset
    python -m benchmarks.inset --seeds 1 --episodes 40 --insets 0 1   # a quick look
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.agents import Records, shield_layer
from benchmarks.kept import kept, save
from benchmarks.tables import tabulate
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import EpisodeRecord
from persist_sb3.runs import Run

ENV = "GridLifeContinuousScent-v0"
STYLES = {
    "survival share": ".3f",
    "violations of temp and integrity, per 100 episodes": ".1f",
    "violations of energy, per 100 episodes": ".1f",
    "intervention rate": ".4f",
    "task return in 512 steps alive": ".1f",
}


def play(path: Path, episodes: int, inset: float | None) -> list[str]:
    """
    :param path: a run's folder
    :param episodes: how many
    :param inset: of its shield; None lets every action pass
    :return: test episodes as JSON, the same layouts for every run
    """
    run = Run(path)
    venv = run.make_env(20, split="test")
    model = run.load_model(venv, seed=0)
    shield = shield_layer(venv)
    if inset is None:
        shield.min_updates = sys.maxsize
    else:
        shield.inset = inset
    ended = evaluate(model, venv, episodes, deterministic=False, seed=1_000_000)
    venv.close()
    return [episode.record.to_json() for episode in ended]


def figures(records: Records) -> dict[str, float]:
    """
    :param records: of an agent
    :return: what is shown of it
    """
    steps = sum(record.length for record in records)
    hungry = sum("energy" in (record.violated or "") for record in records)
    dead = sum(not record.survived for record in records)
    share = 100.0 / len(records)
    values = (
        float(np.mean([record.survived for record in records])),
        share * (dead - hungry),
        share * hungry,
        sum(record.interventions or 0 for record in records) / steps,
        512.0 * sum(record.task_return for record in records) / steps,
    )
    return dict(zip(STYLES, values, strict=True))


def main() -> None:
    """Play what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents")
    parser.add_argument("--episodes", type=int, default=200, help="test episodes an agent")
    parser.add_argument("--insets", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="to compare")
    parser.add_argument("--timesteps", type=int, default=300_000, help="of the agents' training")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/problems"), help="where the runs are")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the result goes")
    own = parser.parse_args()

    rows: dict[str, list[dict[str, float]]] = {}
    for inset in [None, *own.insets]:
        name = "shield off" if inset is None else f"inset {inset:g}"
        for seed in range(own.seeds):
            path = own.folder / str(own.timesteps) / "homeostat-+-shield" / f"seed-{seed}" / "sac" / f"{ENV}_1"
            file = path / f"test-{own.episodes}-{name.replace(' ', '-')}.json"
            lines = kept(file, partial(play, path, own.episodes, inset))
            rows.setdefault(name, []).append(figures([EpisodeRecord.from_json(line) for line in lines]))
    title = f"{ENV}, {own.seeds} agents, {own.episodes} test episodes each: mean [95 % interval]"
    table, results = tabulate(title, rows, STYLES)
    Console(width=140).print(table)
    save(
        {"seeds": own.seeds, "timesteps": own.timesteps, "episodes": own.episodes, **results}, own.output / "inset.json"
    )


if __name__ == "__main__":
    main()
