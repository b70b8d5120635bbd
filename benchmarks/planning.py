"""
Model predictive control on GridLife: the planner on the true dynamics and on learned models, against the oracle's beam
search and against PPO, on the same test layouts.

PPO is trained with the shipped reward and the scent of food, while callbacks train the viability critic, the internal
model and the world model on its transitions. Then PPO plays, PPO plays under the critic's shield, and the planner plays
in PPO's place with the models and without; nothing learns meanwhile. The planners on the true dynamics see all of the
worlds (:class:`~persist_sb3.envs.oracle.FullView`) and foresee no chance; with ``food`` they are told how far away the
nearest food is, as the oracle is. Times are of the process's own CPU. What was trained or played already is kept, so
the benchmark can be interrupted::

    python -m benchmarks.planning                                               # 2 seeds, 30k steps, 20 episodes
    python -m benchmarks.planning --seeds 5 --timesteps 300000 --episodes 200   # what a claim needs
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from benchmarks.agents import flat_ppo, intervals
from benchmarks.kept import kept, kept_agent, models_of, save
from persist_sb3.callbacks import InternalModelCallback, ViabilityCallback, WorldModelCallback
from persist_sb3.envs.oracle import BeamPlanner, FullView, OraclePolicy
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import survival_curve
from persist_sb3.models.spec import StateSpec
from persist_sb3.summary import wilson_interval, without_nan
from persist_sb3.wrappers import (
    PlannerPolicy,
    VecActionShield,
    VecHomeostatReward,
    VecInternalState,
    VecReachAvoidPlanner,
)

RESULTS = Path(__file__).parent / "results" / "planning.json"
SEARCH: dict[str, Any] = {"horizon": 6, "width": 6, "rollouts": 2, "conf": 0.5}


def train(seed: int, timesteps: int) -> PPO:
    """
    :param seed: of the run
    :param timesteps: of the run
    :return: an agent, the models trained beside it in ``model.persist``
    """
    venv = VecInternalState(GridLifeVecEnv(8, flat=True, scent=True))
    layers = VecMonitor(VecHomeostatReward(venv, weight=0.5, alive_bonus="auto", death_penalty=20.0))
    model = flat_ppo(layers, seed)
    models: list[BaseCallback] = [ViabilityCallback(train_freq=2), InternalModelCallback(), WorldModelCallback()]
    model.learn(timesteps, callback=models)
    return model


def play(agent: PolicyPredictor, venv: VecEnv, episodes: int) -> dict[str, Any]:
    """
    :param agent: who plays
    :param venv: the worlds
    :param episodes: how many
    :return: how they went
    """
    began = time.process_time()
    records = [episode.record for episode in evaluate(agent, venv, episodes, deterministic=False, seed=1_000_000)]
    seconds = time.process_time() - began
    survived = sum(record.survived for record in records)
    return {
        "survival share": survived / episodes,
        "interval": wilson_interval(survived, episodes),
        "median time to violation": min(survival_curve(records).median, 512.0),
        "mean length": float(np.mean([record.length for record in records])),
        "task return": float(np.mean([record.task_return for record in records])),
        "CPU ms a step": 1e3 * seconds / sum(record.length for record in records),
    }


def informed(episodes: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """
    :param episodes: test layouts
    :return: those who know the true dynamics, by name
    """

    def oracle() -> dict[str, Any]:
        venv = GridLifeVecEnv(episodes, split="test")
        return play(OraclePolicy(BeamPlanner(venv.params), venv.snapshot), venv, episodes)

    def planner(food: bool, **search: Any) -> dict[str, Any]:
        view = FullView(GridLifeVecEnv(episodes, split="test"))
        progress = view.progress if food else None
        venv = VecReachAvoidPlanner(
            VecInternalState(view), dynamics=view.dynamics, rollouts=1, progress=progress, min_updates=0, **search
        )
        return play(PlannerPolicy(venv), venv, episodes)

    return {
        "oracle": oracle,
        "planner, true dynamics, food": lambda: planner(True, horizon=8, width=16),
        "planner, true dynamics": lambda: planner(False, horizon=14, width=32),
    }


def learned(model: PPO, episodes: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """
    :param model: a trained agent
    :param episodes: test layouts
    :return: what it does, and what its models do in its place, by name
    """
    venv = GridLifeVecEnv(1, flat=True, scent=True)
    bundle = models_of(model, StateSpec(venv.observation_space, venv.action_space, venv.viability))
    alone = {name: bundle[name] for name in ("internal_model", "world_model")}

    def worlds() -> VecInternalState:
        return VecInternalState(GridLifeVecEnv(episodes, flat=True, scent=True, split="test"))

    def planner(models: dict[str, Any], **search: Any) -> dict[str, Any]:
        venv = VecReachAvoidPlanner(worlds(), **SEARCH, **search)
        venv.bind(models, training=False)
        return play(PlannerPolicy(venv), venv, episodes)

    def shield(**kwargs: Any) -> dict[str, Any]:
        venv = VecActionShield(worlds(), threshold=0.05, conf=SEARCH["conf"], **kwargs)
        venv.bind(bundle, training=False)
        return play(model, venv, episodes)

    return {
        "PPO": lambda: play(model, worlds(), episodes),
        "PPO, shield": shield,
        "PPO, shield, planner where none passes": lambda: shield(infeasible="planner", rollouts=2, horizon=6),
        "planner, learned models and critic": lambda: planner(dict(bundle), threshold=0.05),
        "planner, learned models": lambda: planner(alone),
    }


def main() -> None:
    """Train, play, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="agents")
    parser.add_argument("--timesteps", type=int, default=30_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=20, help="test layouts")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/planning"), help="where all is kept")
    parser.add_argument("--output", type=Path, default=RESULTS)
    own = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)

    rows: dict[str, list[dict[str, Any]]] = {}
    for name, measure in informed(own.episodes).items():
        rows[name] = [kept(own.folder / f"{own.episodes}-{name}.json", measure)]
        console.print(name, rows[name][0])
    for seed in range(own.seeds):
        folder = own.folder / f"{own.timesteps}-{seed}"
        model = kept_agent(folder / "agent.zip", partial(train, seed, own.timesteps))
        for name, measure in learned(model, own.episodes).items():
            rows.setdefault(name, []).append(kept(folder / f"{own.episodes}-{name}.json", measure))
            console.print(seed, name, rows[name][-1])

    title = f"GridLife with scent, {own.timesteps:,} steps, {own.seeds} seeds, {own.episodes} test layouts"
    table = Table("", "survive", "mean length", "items", "CPU ms a step", title=title)
    results: dict[str, Any] = {key: getattr(own, key) for key in ("seeds", "timesteps", "episodes")}
    lengths = {name: np.array([row["mean length"] for row in many]) for name, many in rows.items() if len(many) > 1}
    bounds = intervals(lengths) if lengths else {}
    for name, many in rows.items():
        mean = {
            key: float(np.mean([row[key] for row in many]))
            for key in ("survival share", "mean length", "task return", "CPU ms a step")
        }
        low, high = bounds[name][1:] if name in bounds else (np.nan, np.nan)
        spread = f" [{low:.0f}, {high:.0f}]" if name in bounds else ""
        table.add_row(
            name,
            f"{mean['survival share']:.1%}",
            f"{mean['mean length']:.0f}{spread}",
            f"{mean['task return']:.1f}",
            f"{mean['CPU ms a step']:.2f}",
        )
        results[name] = {"mean": mean, "seeds": many, "interval of mean length": [low, high]}
    console.print(table)
    save(without_nan(results), own.output)


if __name__ == "__main__":
    main()
