"""
What a curriculum adds: PPO on GridLife with the scent of food, with the same budget of steps in one go and in stages,
with and without the shield. Every agent is evaluated on layouts that it has not seen, under the declared constraints::

    python -m benchmarks.curriculum                                  # 3 seeds, 100k steps, 100 test episodes an agent
    python -m benchmarks.curriculum --seeds 1 --timesteps 30000      # a quick look

Violations in training are counted against the declared constraints, also while they are wider: an episode then goes on
after them. Deaths are the episodes that ended with a violation of those in force. Agents that are there already are not
trained again, so the benchmark can be interrupted.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.agents import Records, flat_ppo
from benchmarks.kept import save, saved
from benchmarks.tables import tabulate
from persist_sb3.callbacks import CurriculumCallback, MetricsCallback, ViabilityCallback
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import survival_curve
from persist_sb3.wrappers import VecActionShield, VecHomeostatReward, VecInternalState

Stages = list[dict[str, Any]]


def stages(condition: str, timesteps: int) -> Stages:
    """
    :param condition: a name in :data:`CONDITIONS`
    :param timesteps: of the whole training
    :return: stages before what is declared
    """
    quarter = timesteps // 4
    tightness: Stages = [{"steps": quarter, "tightness": 0.5}, {"steps": quarter, "tightness": 0.75}]
    weights: Stages = [{"steps": quarter, "homeo_factor": 0.1}, {"steps": quarter, "homeo_factor": 0.4}]
    return {
        "in one go": [],
        "constraints": tightness,
        "constraints, by stability": [{**stage, "violation_rate": 0.5, "episodes": 100} for stage in tightness],
        "weights": weights,
        "constraints and weights": [{**a, **b} for a, b in zip(tightness, weights, strict=True)],
    }[condition]


CONDITIONS = ("in one go", "constraints", "constraints, by stability", "weights", "constraints and weights")


def make_env(split: str, num_envs: int, shield: bool) -> VecEnv:
    """
    :param split: which layouts
    :param num_envs: how many
    :param shield: whether actions are filtered
    :return: GridLife in its layers
    """
    venv: VecEnv = VecInternalState(GridLifeVecEnv(num_envs, flat=True, scent=True, split=split))
    venv = VecHomeostatReward(venv, w=[1.0, 0.5, 1.5], weight=0.5, alive_bonus="auto", death_penalty=20.0)
    return VecActionShield(venv, threshold=0.05) if shield else venv


class Episodes(MetricsCallback):
    """Keeps every episode of the training, and counts those that ended with a violation."""

    def __init__(self) -> None:
        super().__init__(window=1_000_000)
        self.deaths = 0

    def _on_step(self) -> bool:
        step = self.store.read(self.locals)
        self.deaths += int((step.terminated & (step.cost > 0.0)).sum())
        return super()._on_step()


def run(condition: str, shield: bool, seed: int, timesteps: int, episodes: int) -> dict[str, float]:
    """
    Train an agent, and evaluate it.

    :param condition: a name in :data:`CONDITIONS`
    :param shield: whether actions are filtered
    :param seed: of everything
    :param timesteps: of the training
    :param episodes: of the evaluation
    :return: figures, by name
    """
    env = VecNormalize(make_env("train", 8, shield), norm_reward=True, gamma=0.98)
    model = flat_ppo(env, seed, net_arch=(128, 128))
    record = Episodes()
    callbacks: list[BaseCallback] = [record]
    if shield:
        callbacks.append(ViabilityCallback(train_freq=2))
    plan = stages(condition, timesteps)
    if plan:
        callbacks.append(CurriculumCallback(plan))
    model.learn(timesteps, callback=callbacks)
    layers = make_env("test", 20, shield)
    if shield:
        assert isinstance(layers, VecActionShield)
        layers.bind(model.persist.bundle(), training=False)  # type: ignore[attr-defined]
    test_env = VecNormalize(layers, training=False, norm_reward=False)
    test_env.obs_rms = env.obs_rms
    test: Records = [
        episode.record for episode in evaluate(model, test_env, episodes, deterministic=False, seed=1_000_000)
    ]
    return {
        "survival share": float(np.mean([e.survived for e in test])),
        "mean time alive": survival_curve(test).restricted_mean(),
        "task return an episode": float(np.mean([e.task_return for e in test])),
        "deaths while training": float(record.deaths),
        "violations while training": float(record.violations),
        "stage at the end": float(model.persist.parts["curriculum_progress"].index if plan else 0),  # type: ignore[attr-defined]
    }


def main() -> None:
    """Train, evaluate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=100_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=100, help="test episodes an agent")
    parser.add_argument("--shield", nargs="+", choices=["off", "on"], default=["off", "on"], help="which settings")
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=CONDITIONS, help="conditions. Default: all")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()

    path = own.output / "curriculum.json"
    results = saved(path, seeds=own.seeds, timesteps=own.timesteps, episodes=own.episodes)
    work = list(product(own.shield, own.only, range(own.seeds)))
    for shield, condition, seed in track(work, "training"):
        done = results.setdefault(f"shield {shield}", {}).setdefault(condition, {})
        if str(seed) not in done:
            done[str(seed)] = run(condition, shield == "on", seed, own.timesteps, own.episodes)
            save(results, path)
    for shield in own.shield:
        found = results[f"shield {shield}"]
        rows = {condition: [found[condition][str(seed)] for seed in range(own.seeds)] for condition in own.only}
        title = f"shield {shield}, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]"
        table, _ = tabulate(title, rows, {name: ".3f" if "share" in name else ".1f" for name in rows[own.only[0]][0]})
        Console(width=180).print(table)


if __name__ == "__main__":
    main()
