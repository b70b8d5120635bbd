"""
When the world is not as it was: agents trained on plain GridLife, evaluated on its shifted forms, with the shield off,
on, and cautious where the models disagree.

PPO is trained with the shipped reward and the scent of food, while callbacks train the viability critic and the
internal model on its transitions; no shield acts in training, so all conditions share one policy. Then everything
stands still, and the policy plays the same test layouts in each world under each shield. ``excess`` is by how many
times the disagreement exceeds what is typical, averaged over the steps of the unshielded policy: whether the shift is
noticed at all::

    python -m benchmarks.shift                                               # 2 seeds, 60k steps, 40 episodes each
    python -m benchmarks.shift --seeds 5 --timesteps 300000 --episodes 200   # what a claim needs
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from benchmarks.agents import intervals
from persist_sb3.callbacks import InternalModelCallback, ViabilityCallback
from persist_sb3.envs import ENV_IDS
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.evaluation import evaluate
from persist_sb3.models.spec import StateSpec
from persist_sb3.recording import play
from persist_sb3.wrappers import VecActionShield, VecHomeostatReward, VecInternalState, VecPartialObservation

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


def train(seed: int, timesteps: int) -> PPO:
    """
    :param seed: of the run
    :param timesteps: of the run
    :return: an agent, the models trained beside it in ``model.persist``
    """
    layers = VecHomeostatReward(make("GridLife-v0", 8, "train"), weight=0.5, alive_bonus="auto", death_penalty=20.0)
    model = PPO(
        "MlpPolicy",
        VecMonitor(layers),
        learning_rate=7e-4,
        n_steps=256,
        batch_size=256,
        gamma=0.98,
        gae_lambda=0.9,
        policy_kwargs={"net_arch": [256, 256], "activation_fn": torch.nn.ReLU},
        seed=seed,
        device="cpu",
    )
    return model.learn(timesteps, callback=[ViabilityCallback(train_freq=2), InternalModelCallback()])


def excess(model: PPO, env_id: str, steps: int = 200) -> float:
    """
    :param model: a trained agent
    :param env_id: the world
    :param steps: of 20 environments
    :return: by how many times the internal model's disagreement exceeds what is typical, on average
    """
    venv = make(env_id, 20)
    parts: Any = model.persist.parts  # type: ignore[attr-defined]
    spec: StateSpec = parts["internal_model"].spec
    total = []
    for _, step in zip(range(steps), play(model, venv, deterministic=False, seed=1_000_000), strict=False):
        state = spec.encode(step.observation, step.internal)
        disagreement = parts["internal_model"].disagreement(state, spec.encode_action(step.executed_action))
        total.append(float(parts["familiarity"].excess(disagreement).mean()))
    return float(np.mean(total))


def main() -> None:
    """Train, evaluate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="agents")
    parser.add_argument("--timesteps", type=int, default=60_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=40, help="test layouts")
    parser.add_argument("--output", type=Path, default=RESULTS)
    own = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)

    survival: dict[str, list[float]] = {}
    length: dict[str, list[float]] = {}
    noticed: dict[str, list[float]] = {}
    for seed in range(own.seeds):
        model = train(seed, own.timesteps)
        bundle = model.persist.bundle()  # type: ignore[attr-defined]
        for env_id in WORLDS:
            noticed.setdefault(env_id, []).append(excess(model, env_id))
            for name, shield in SHIELDS.items():
                venv = make(env_id, min(own.episodes, 20))
                if shield is not None:
                    venv = VecActionShield(venv, **shield)
                    venv.bind(bundle, training=False)
                episodes = evaluate(model, venv, own.episodes, deterministic=False, seed=1_000_000)
                key = f"{env_id}, {name}"
                survival.setdefault(key, []).append(float(np.mean([e.record.survived for e in episodes])))
                length.setdefault(key, []).append(float(np.mean([e.record.length for e in episodes])))
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
    own.output.parent.mkdir(parents=True, exist_ok=True)
    own.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
