"""
What a curriculum adds: PPO on GridLife with the scent of food, as shipped, with the same budget of steps in one go and
in stages, without the shield and with it. Every agent is evaluated on layouts that it has not seen, under the declared
constraints.

Violations in training are counted against the declared constraints, also while they are wider: an episode then goes on
after them. Deaths are the episodes that ended with a violation of those in force. Agents that are there already are not
trained again, so the benchmark can be interrupted; those in one go are ``homeostat`` and ``shield, masks`` of
``benchmarks.shield``::

    python -m benchmarks.curriculum                                  # 3 seeds, 300k steps, 200 test episodes an agent
    python -m benchmarks.curriculum --seeds 1 --timesteps 30000      # a quick look
"""

from typing import Any

from rich.console import Console

from benchmarks.agents import STYLES, Condition, evaluate_run, figures, parse, size, trained
from benchmarks.kept import save
from benchmarks.tables import tabulate
from persist_sb3 import hyperparams
from persist_sb3.metrics import read_episodes

ENV = "GridLifeScent-v0"
*LAYERS, SHIELD = hyperparams.load("ppo")[ENV]["vec_env_wrapper"]
METRICS, VIABILITY = hyperparams.load("ppo")[ENV]["callback"]
STAGES = "persist_sb3.callbacks.CurriculumCallback"
DEATHS = "deaths while training"


def conditions(timesteps: int) -> dict[str, Condition]:
    """
    :param timesteps: of the whole training; the stages before what is declared take half of them
    :return: how agents are trained, by name
    """
    quarter = timesteps // 4
    wide = [{"steps": quarter, "tightness": 0.5}, {"steps": quarter, "tightness": 0.75}]
    stable = [{**stage, "violation_rate": 0.2, "episodes": 50} for stage in wide]
    weights = [{"steps": quarter, "homeo_factor": 0.1}, {"steps": quarter, "homeo_factor": 0.4}]

    def given(layers: list[Any], callbacks: list[Any], stages: list[dict[str, Any]]) -> list[str]:
        staged = [*callbacks, {STAGES: {"stages": stages}}] if stages else callbacks
        return ["-params", f"vec_env_wrapper:{[*LAYERS, *layers]}", f"callback:{[METRICS, *staged]}"]

    return {
        "in one go": Condition(given([], [], [])),
        "constraints": Condition(given([], [], wide)),
        "constraints, by stability": Condition(given([], [], stable)),
        "weights": Condition(given([], [], weights)),
        "shield, in one go": Condition(given([SHIELD], [VIABILITY], []), "ppo_mask"),
        "shield, constraints": Condition(given([SHIELD], [VIABILITY], wide), "ppo_mask"),
    }


def main() -> None:
    """Train what is missing, evaluate, and write the table."""
    own = parse(__doc__, "curriculum", conditions(0), seeds=3, timesteps=300_000, episodes=200)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in own.only}
    for name, run in trained(ENV, conditions(own.timesteps), own):
        training = read_episodes(run / "persist.jsonl")
        deaths = float(sum(episode.terminated for episode in training))
        rows[name].append({**figures(evaluate_run(run, own.episodes), training), DEATHS: deaths})
    title = f"PPO on {ENV}, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]"
    table, results = tabulate(title, rows, {**STYLES, DEATHS: ".0f"})
    Console(width=200).print(table)
    save({**size(own), **results}, own.output / "curriculum.json")


if __name__ == "__main__":
    main()
