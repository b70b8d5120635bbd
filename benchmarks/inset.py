"""
How far inside of what passes a refused Box action is best projected to: SAC's shielded agents on
``GridLifeContinuousScent-v0``, which it shares with ``benchmarks.continuous``, each on the same test layouts under
shields that differ in their ``inset`` alone, and with every action passing::

    python -m benchmarks.inset
    python -m benchmarks.inset --seeds 1 --episodes 40 --insets 0 1   # a quick look
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.agents import Records, evaluate_run, played
from benchmarks.continuous import TASKS, trained
from benchmarks.kept import save
from benchmarks.tables import tabulate

ENV = "GridLifeContinuousScent-v0"
STYLES = {
    "survival share": ".3f",
    "violations of temp and integrity, per 100 episodes": ".1f",
    "violations of energy, per 100 episodes": ".1f",
    "intervention rate": ".4f",
    "task return in 512 steps alive": ".1f",
}


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
    """Train and play what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents")
    parser.add_argument("--episodes", type=int, default=200, help="test episodes an agent")
    parser.add_argument("--insets", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="to compare")
    parser.add_argument("--timesteps", type=int, default=300_000, help="of the agents' training")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/problems"), help="where the runs are")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the result goes")
    own = parser.parse_args()

    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(own.seeds):
        path = trained(ENV, TASKS[ENV], "homeostat + shield", seed, own.timesteps, own.folder)
        rows.setdefault("shield off", []).append(figures(evaluate_run(path, own.episodes, shield=False)))
        for inset in own.insets:
            records = played(path, own.episodes, f"test-{own.episodes}-inset-{inset:g}.json", {"inset": inset})
            rows.setdefault(f"inset {inset:g}", []).append(figures(records))
    title = f"{ENV}, {own.seeds} agents, {own.episodes} test episodes each: mean [95 % interval]"
    table, results = tabulate(title, rows, STYLES)
    Console(width=140).print(table)
    save(
        {"seeds": own.seeds, "timesteps": own.timesteps, "episodes": own.episodes, **results}, own.output / "inset.json"
    )


if __name__ == "__main__":
    main()
