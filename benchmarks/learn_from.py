"""
What an off-policy learner should make of a step in which the shield changed its action: the executed action, the
proposed one with a penalty or without, or both. SAC on Pendulum whose motor must not overheat, as shipped with the
shield, and evaluated with the shield and without it. Agents that are there already are not trained again, so the
benchmark can be interrupted::

    python -m benchmarks.learn_from                                 # 3 seeds, 10k steps, 50 test episodes an agent
    python -m benchmarks.learn_from --seeds 1 --timesteps 4000      # a quick look
"""

from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.agents import Condition, Records, evaluate_run, parse, size, trained
from benchmarks.kept import save
from benchmarks.tables import tabulate
from persist_sb3.metrics import read_episodes

ENV = "Pendulum-v1"
PENALTY = 0.5
STYLES = {
    "violating steps in training, per 1000": ".1f",
    "interventions in the last half, per 1000 steps": ".0f",
    "task return": ".0f",
    "episodes without a violation": ".3f",
    "task return, shield off": ".0f",
    "episodes without a violation, shield off": ".3f",
}


def learning(learn_from: str, penalty: float = 0.0) -> Condition:
    """
    :param learn_from: see :class:`~persist_sb3.buffers.ExecutedActionReplayBuffer`
    :param penalty: of a proposal that was changed
    :return: SAC with the shipped shield, which learns so
    """
    chosen: dict[str, Any] = {"learn_from": learn_from, "intervention_penalty": penalty}
    return Condition(["--shield", "-params", f"replay_buffer_kwargs:{chosen}"], "sac")


CONDITIONS = {
    "executed": learning("executed"),
    "proposed": learning("proposed"),
    f"proposed, penalty {PENALTY}": learning("proposed", PENALTY),
    f"both, penalty {PENALTY}": learning("both", PENALTY),
}


def measure(training: Records, test: Records, alone: Records) -> dict[str, float]:
    """
    :param training: an agent's training episodes
    :param test: its test episodes
    :param alone: the same without the shield
    :return: the figures of :data:`STYLES`
    """
    half = training[-1].timestep / 2
    late = [episode for episode in training if episode.timestep > half]
    steps = sum(episode.length for episode in training)
    figures = [1e3 * sum(episode.violations for episode in training) / steps]
    figures.append(1e3 * sum(e.interventions or 0 for e in late) / sum(e.length for e in late))
    for episodes in (test, alone):
        figures.append(float(np.mean([episode.task_return for episode in episodes])))
        figures.append(float(np.mean([episode.survived for episode in episodes])))
    return dict(zip(STYLES, figures, strict=True))


def main() -> None:
    """Train what is missing, evaluate, and write the table."""
    own = parse(__doc__, "learn_from", CONDITIONS, seeds=3, timesteps=10_000, episodes=50)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in own.only}
    for name, run in trained(ENV, CONDITIONS, own):
        tests = evaluate_run(run, own.episodes), evaluate_run(run, own.episodes, shield=False)
        rows[name].append(measure(read_episodes(run / "persist.jsonl"), *tests))
    title = f"SAC on {ENV} under a shield, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]"
    table, results = tabulate(title, rows, STYLES)
    Console(width=150).print(table)
    save({**size(own), **results}, own.output / "learn_from.json")


if __name__ == "__main__":
    main()
