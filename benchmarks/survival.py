"""
Who stays alive: PPO on GridLife as shipped, with the homeostat, a memory and equivariant networks, against SB3's PPO on
the task reward alone; against agents that lack one or more of these parts; and against five times the raw deviation
reward on top of the task, which pays the agent to die.

Every agent is trained by ``train.py`` with the hyperparameters in ``persist_sb3/hyperparams/ppo.yml``, and evaluated on
layouts that it has not seen. Agents that are there already are not trained again, so the benchmark can be interrupted::

    python -m benchmarks.survival                                  # 5 seeds, 300k steps, 200 test episodes an agent
    python -m benchmarks.survival --seeds 2 --timesteps 50000      # a quick look
    python -m benchmarks.survival --only "persist-sb3"             # some conditions
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks.agents import PLAIN, STYLES, Condition, Records, evaluate_run, figures, parse, trained
from benchmarks.kept import save
from benchmarks.tables import tabulate
from persist_sb3 import hyperparams, plots
from persist_sb3.metrics import read_episodes

ENV = "GridLife-v0"
MEMORY, INTERNAL, HOMEOSTAT = hyperparams.load("ppo")[ENV]["vec_env_wrapper"]
DEVIATION = {"persist_sb3.wrappers.VecHomeostatReward": {"w": [1.0, 0.5, 1.5], "weight": 5.0}}


def given(*layers: Any, networks: Sequence[str] = ()) -> Condition:
    """
    :param layers: around the environment
    :param networks: options that ask for others than the shipped ones
    :return: the shipped hyperparameters with these
    """
    return Condition(["-params", f"vec_env_wrapper:{list(layers)}", *networks])


# InternalState changes no reward.
CONDITIONS = {
    "task reward": given(INTERNAL, networks=PLAIN),
    "raw deviation": given(INTERNAL, DEVIATION, networks=PLAIN),
    "task reward, equivariant": given(INTERNAL),
    "homeostat, plain": given(INTERNAL, HOMEOSTAT, networks=PLAIN),
    "homeostat, equivariant": given(INTERNAL, HOMEOSTAT),
    "task reward, memory": given(MEMORY, INTERNAL),
    "persist-sb3": Condition([]),
}


def main() -> None:
    """Train what is missing, evaluate, and write the table and the plot."""
    own = parse(__doc__, "survival", CONDITIONS, seeds=5, timesteps=300_000, episodes=200)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in own.only}
    tests: dict[str, Records] = {name: [] for name in own.only}
    for name, run in trained(ENV, CONDITIONS, own):
        test = evaluate_run(run, own.episodes)
        tests[name] += test
        rows[name].append(figures(test, read_episodes(run / "persist.jsonl")))

    title = f"PPO on {ENV}, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]"
    table, results = tabulate(title, rows, STYLES)
    Console(width=130).print(table)
    size = {key: value for key, value in vars(own).items() if isinstance(value, int)}
    save({**size, **results}, own.output / "survival.json")
    plots.save(plots.survival(tests), own.output / "survival.png")


if __name__ == "__main__":
    main()
