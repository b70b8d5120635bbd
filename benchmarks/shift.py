"""
When the world is not as it was: agents trained on plain GridLife, evaluated on its shifted forms, with the shield off,
on, and cautious where the models disagree.

The agents are those of :mod:`benchmarks.planning`: PPO with the shipped reward and the scent of food, while callbacks
train the models on its transitions; no shield acts in training, so all conditions share one policy. Then everything
stands still, and the policy plays the same test layouts in each world under each shield. ``excess`` is by how many
times the disagreement exceeds what is typical, averaged over the steps of the unshielded policy: whether the shift is
noticed at all. What was trained or played already is kept::

    python -m benchmarks.shift                                               # 2 seeds, 30k steps, 40 episodes each
    python -m benchmarks.shift --seeds 5 --timesteps 300000 --episodes 200   # what a claim needs
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.agents import intervals
from benchmarks.kept import kept, kept_agent, models_of, save
from benchmarks.planning import train
from persist_sb3.envs import ENV_IDS
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.evaluation import declared_viability, evaluate
from persist_sb3.models.spec import StateSpec
from persist_sb3.recording import play
from persist_sb3.wrappers import VecActionShield, VecInternalState, VecPartialObservation

RESULTS = Path(__file__).parent / "results" / "shift.json"
WORLDS = ("GridLife-v0", "GridLifeDropout-v0", "GridLifeDrift-v0", "GridLifeRare-v0", "GridLifeScarce-v0")
SHIELDS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "on": {"threshold": 0.05},
    "cautious": {"threshold": 0.05, "caution": 0.05},
}


def make(env_id: str, n: int, split: Any = "test") -> VecEnv:
    """
    :param env_id: one of GridLife's
    :param n: environments
    :param split: of the layouts
    :return: them, flat and with scent
    """
    kwargs: dict[str, Any] = dict(ENV_IDS[env_id])
    dropout = kwargs.pop("dropout", None)
    venv = VecInternalState(GridLifeVecEnv(n, flat=True, scent=True, split=split, **kwargs))
    return venv if dropout is None else VecPartialObservation(venv, dropout=dropout)


def excess(model: PPO, models: dict[str, Any], env_id: str, steps: int = 200) -> float:
    """
    :param model: a trained agent
    :param models: that were trained beside it, by name
    :param env_id: the world
    :param steps: of 20 environments
    :return: by how many times the internal model's disagreement exceeds what is typical, on average
    """
    venv = make(env_id, 20)
    ensemble, familiarity = models["internal_model"], models["familiarity"]
    spec = ensemble.spec
    total = []
    for _, step in zip(range(steps), play(model, venv, deterministic=False, seed=1_000_000), strict=False):
        state = spec.encode(step.observation, step.internal)
        disagreement = ensemble.disagreement(state, spec.encode_action(step.executed_action))
        total.append(float(familiarity.excess(disagreement).mean()))
    return float(np.mean(total))


def play_under(model: PPO, models: dict[str, Any], env_id: str, name: str, episodes: int) -> tuple[float, float]:
    """
    :param model: a trained agent
    :param models: that were trained beside it, by name
    :param env_id: the world
    :param name: of the shield
    :param episodes: how many
    :return: share of them that survive, and mean length
    """
    venv = make(env_id, min(episodes, 20))
    shield = SHIELDS[name]
    if shield is not None:
        venv = VecActionShield(venv, **shield)
        venv.bind(models, training=False)
    records = [e.record for e in evaluate(model, venv, episodes, deterministic=False, seed=1_000_000)]
    return float(np.mean([record.survived for record in records])), float(np.mean([r.length for r in records]))


def main() -> None:
    """Train, evaluate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="agents")
    parser.add_argument("--timesteps", type=int, default=30_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=40, help="test layouts")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks/planning"), help="where all is kept")
    parser.add_argument("--output", type=Path, default=RESULTS)
    own = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)

    survival: dict[str, list[float]] = {}
    length: dict[str, list[float]] = {}
    noticed: dict[str, list[float]] = {}
    for seed in range(own.seeds):
        folder = own.folder / f"{own.timesteps}-{seed}"
        model = kept_agent(folder / "agent.zip", partial(train, seed, own.timesteps))
        venv = make("GridLife-v0", 1)
        models = models_of(model, StateSpec(venv.observation_space, venv.action_space, declared_viability(venv)))
        for env_id in WORLDS:
            noticed.setdefault(env_id, []).append(
                kept(folder / f"{env_id}-excess.json", partial(excess, model, models, env_id))
            )
            for name in SHIELDS:
                key = f"{env_id}, {name}"
                measure = partial(play_under, model, models, env_id, name, own.episodes)
                share, mean = kept(folder / f"{own.episodes}-{key}.json", measure)
                survival.setdefault(key, []).append(share)
                length.setdefault(key, []).append(mean)
                console.print(seed, key, f"{survival[key][-1]:.3f} {length[key][-1]:.0f}")

    title = f"PPO trained on GridLife-v0 with scent, {own.timesteps:,} steps, {own.seeds} seeds: survival, mean length"
    table = Table("", *(f"shield {name}" for name in SHIELDS), "excess", title=title)
    shares, lengths = (intervals({k: np.array(v) for k, v in scores.items()}) for scores in (survival, length))
    for env_id in WORLDS:
        cells = []
        for name in SHIELDS:
            (share, *_), (mean, low, high) = shares[f"{env_id}, {name}"], lengths[f"{env_id}, {name}"]
            cells.append(f"{share:.1%}, {mean:.0f} [{low:.0f}, {high:.0f}]")
        table.add_row(env_id, *cells, f"{np.mean(noticed[env_id]):.2f}")
    console.print(table)
    results = {
        **{key: getattr(own, key) for key in ("seeds", "timesteps", "episodes")},
        "survival share": {key: {"mean": shares[key], "seeds": values} for key, values in survival.items()},
        "mean length": {key: {"mean": lengths[key], "seeds": values} for key, values in length.items()},
        "excess disagreement": noticed,
    }
    save(results, own.output)


if __name__ == "__main__":
    main()
