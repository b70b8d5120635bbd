"""
Whether ``LagrangeCallback`` comes to the rate of violations that it is given: PPO on a CartPole that is paid for the
speed of its cart and may be faster than 0.5 m/s in a share of its steps, by a price of such steps (PPO-Lagrangian) and
by the weight of the homeostat::

    python -m benchmarks.lagrange                                 # 3 seeds, 40k steps
    python -m benchmarks.lagrange --seeds 1 --timesteps 20000     # a quick look

Agents that are there already are not trained again, so the benchmark can be interrupted. Realised is the share of such
steps in the last fifth of the training, as the policy that learns draws its actions.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from benchmarks.agents import intervals
from benchmarks.kept import save, saved
from benchmarks.tables import written
from persist_sb3.callbacks import LagrangeCallback
from persist_sb3.lagrange import Scales
from persist_sb3.wrappers import VecCostPenalty, VecHomeostatReward, VecInternalState

LIMIT = 0.5
#: What is scaled, and the target; None: neither.
CONDITIONS: tuple[tuple[Scales | None, float | None], ...] = (
    (None, None),
    ("cost", 0.4),
    ("cost", 0.2),
    ("cost", 0.1),
    ("cost", 0.05),
    ("homeostat", 0.2),
    ("homeostat", 0.1),
)


class PaidForSpeed(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole whose reward is the speed of the cart."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See :class:`gymnasium.Env`."""
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, abs(float(observation[1])), terminated, truncated, info


class Steps(BaseCallback):
    """Keeps cost and task reward of every step, and the multiplier that each rollout leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.cost: list[float] = []
        self.task: list[float] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.cost.append(float(np.mean([info["cost"] for info in infos])))
        self.task.append(float(np.mean([info["reward_terms"]["task"] for info in infos])))
        return True


def run(scales: Scales | None, target: float | None, seed: int, timesteps: int) -> dict[str, float]:
    """
    :param scales: what the multiplier is the weight of; None: nothing, for the task reward alone
    :param target: share of steps, if something is scaled
    :param seed: of everything
    :param timesteps: of the training
    :return: figures, by name
    """

    def make() -> gym.Env[Any, Any]:
        return Monitor(PaidForSpeed(gym.make("CartPole-v1")))

    limits: dict[str, Any] = {"constraints": [f"abs(speed) <= {LIMIT}"], "mu": [0.0]}
    venv: VecEnv = VecInternalState(DummyVecEnv([make] * 8), dims=["speed"], sources={"speed": "obs[1]"}, **limits)
    steps = Steps()
    callbacks: list[BaseCallback] = [steps]
    if scales is not None and target is not None:
        venv = VecCostPenalty(venv) if scales == "cost" else VecHomeostatReward(venv, alive_bonus="auto")
        lagrange = LagrangeCallback(target, per="step", scales=scales, ki=0.2, kp=1.0, update_freq=512)
        callbacks.append(lagrange)
    env = VecNormalize(venv, norm_obs=False, gamma=0.98)
    model = PPO("MlpPolicy", env, learning_rate=1e-3, n_steps=64, batch_size=128, gamma=0.98, seed=seed, device="cpu")
    model.learn(timesteps, callback=callbacks)
    last = len(steps.cost) * 4 // 5
    return {
        "realised": float(np.mean(steps.cost[last:])),
        "task reward a step": float(np.mean(steps.task[last:])),
        "multiplier": 0.0 if target is None else lagrange.controller.value,
    }


def main() -> None:
    """Train, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=40_000, help="environment steps an agent")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()

    path = own.output / "lagrange.json"
    size = {"seeds": own.seeds, "timesteps": own.timesteps}
    results = saved(path, **size)
    table = Table(title=f"{own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]")
    for column in ("scaled", "target", "realised", "task reward a step", "multiplier"):
        table.add_column(column, justify="right")
    with Progress() as progress:
        training = progress.add_task("training", total=own.seeds * len(CONDITIONS))
        for scales, target in CONDITIONS:
            runs = results.setdefault(f"{scales or 'nothing'} {target}", {})
            for seed in range(own.seeds):
                if str(seed) not in runs:
                    runs[str(seed)] = run(scales, target, seed, own.timesteps)
                    save(results, path, **size)
                progress.advance(training)
            scores = {figure: np.array([each[figure] for each in runs.values()]) for figure in runs["0"]}
            cells = [written(estimate, ".3f") for estimate in intervals(scores).values()]
            table.add_row(scales or "nothing", "-" if target is None else f"{target:g}", *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
