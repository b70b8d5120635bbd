"""
Who survives on GridLife with energy hidden: PPO that sees everything, and with energy hidden PPO with a belief, PPO
without, and recurrent PPO, all as shipped, on layouts that they have not seen.

Agents that are there already are not trained again, so the benchmark can be interrupted. What the belief is worth as an
estimate is measured by ``benchmarks.belief``::

    python -m benchmarks.hidden                                   # 3 seeds, 300k steps, 200 test episodes an agent
    python -m benchmarks.hidden --seeds 1 --timesteps 50000       # a quick look
"""

from rich.console import Console

from benchmarks.agents import CPU_SECONDS, STYLES, Condition, cost, evaluate_run, figures, parse, size, trained
from benchmarks.kept import save
from benchmarks.tables import tabulate
from persist_sb3 import hyperparams
from persist_sb3.metrics import read_episodes

ENV, HIDDEN = "GridLife-v0", "GridLifeHidden-v0"
*LAYERS, BELIEF = hyperparams.load("ppo")[HIDDEN]["vec_env_wrapper"]
METRICS, LEARNING = hyperparams.load("ppo")[HIDDEN]["callback"]
WITHOUT = ["-params", f"vec_env_wrapper:{LAYERS}", f"callback:{METRICS!r}", "normalize:{'norm_obs_keys': ['internal']}"]
CONDITIONS = {
    "all seen": Condition([]),
    "hidden, with a belief": Condition([], env_id=HIDDEN),
    "hidden": Condition(WITHOUT, env_id=HIDDEN),
    "hidden, recurrent PPO": Condition([], "ppo_lstm", HIDDEN),
}


def main() -> None:
    """Train what is missing, evaluate, and write the table."""
    own = parse(__doc__, "hidden", CONDITIONS, seeds=3, timesteps=300_000, episodes=200)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in own.only}
    for name, run in trained(ENV, CONDITIONS, own):
        training = read_episodes(run / "persist.jsonl")
        rows[name].append({**figures(evaluate_run(run, own.episodes), training), **cost(run)})
    title = f"PPO on GridLife, energy hidden or seen, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]"
    table, results = tabulate(title, rows, {**STYLES, CPU_SECONDS: ".0f"})
    Console(width=150).print(table)
    save({**size(own), **results}, own.output / "hidden.json")


if __name__ == "__main__":
    main()
