"""
The dark room: what becomes of an agent that only wants to foresee what happens, and what the homeostat does about it.

A corridor of seven cells. At its left end it is dark and nothing happens; the further to the right, the more the lights
flicker; at the right end there is food. The energy falls by 0.02 a step, and below 0.2 the agent starves, which is
counted and, in the usual setting, ends the episode. Nothing but the layers gives a reward: `SurpriseBonus` alone,
`HomeostatReward` alone, both (with a strong surprise and a weak one), and `SurpriseBonus(seek=True)` for comparison.
PPO, the same in all conditions; the last fifth of the training episodes is what is shown. `--immortal` lets the episode
go on when the agent has starved::

    python -m benchmarks.surprise
    python -m benchmarks.surprise --seeds 1 --timesteps 20000      # a quick look
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.kept import save, saved
from benchmarks.tables import tabulate
from persist_sb3.callbacks import WorldModelCallback
from persist_sb3.wrappers import VecHomeostatReward, VecInternalState, VecSurpriseBonus

CELLS, LIGHTS, HORIZON = 7, 8, 200
#: Layers of each condition: weight of the surprise, whether it is sought, and whether there is a homeostat.
CONDITIONS: dict[str, tuple[float, bool, bool]] = {
    "homeostat": (0.0, False, True),
    "surprise": (5.0, False, False),
    "surprise + homeostat": (5.0, False, True),
    "weak surprise + homeostat": (1.0, False, True),
    "seeking surprise": (5.0, True, False),
}
STEPS = "steps before it starves"
DARK = "share of steps in the dark room"
SURPRISE = "surprise, nats an entry"
FIGURES = {STEPS: ".0f", DARK: ".2f", SURPRISE: ".2f"}


class DarkRoom(gym.Env[Any, Any]):
    """
    The corridor.

    :param mortal: whether the episode ends when the agent has starved
    """

    observation_space = spaces.Box(-5.0, 5.0, (CELLS + LIGHTS + 1,), dtype=np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, mortal: bool = True) -> None:
        self.mortal = mortal

    def _observe(self) -> tuple[NDArray[np.float32], dict[str, Any]]:
        lights = self.np_random.normal(0.0, self.cell / (CELLS - 1), LIGHTS)
        seen = np.concatenate([np.eye(CELLS)[self.cell], lights, [self.energy]])
        return seen.clip(-5.0, 5.0).astype(np.float32), {"internal": np.array([self.energy]), "cell": self.cell}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.cell, self.energy, self.time = CELLS // 2, 0.7, 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.cell = int(np.clip(self.cell + int(action) - 1, 0, CELLS - 1))
        self.energy = float(np.clip(self.energy - 0.02 + 0.2 * (self.cell == CELLS - 1), 0.0, 1.0))
        observation, info = self._observe()
        return observation, 0.0, self.mortal and self.energy < 0.2, self.time >= HORIZON, info


class Watch(BaseCallback):
    """Keeps of every training episode when it ended, when the agent starved, and where it was."""

    def _on_training_start(self) -> None:
        n = self.training_env.num_envs
        self.time, self.dark, self.starved = np.zeros(n), np.zeros(n), np.full(n, np.inf)
        self.surprise: list[tuple[int, float]] = []
        self.episodes: list[tuple[int, float, float]] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.time += 1
        self.dark += [info["cell"] == 0 for info in infos]
        cost = np.array([info["cost"] for info in infos])
        self.starved = np.where((cost > 0) & np.isinf(self.starved), self.time, self.starved)
        told = [info["persist"]["surprise"] for info in infos if "surprise" in info["persist"]]
        if told:
            self.surprise.append((self.num_timesteps, float(np.mean(told))))
        for slot in np.flatnonzero(self.locals["dones"]):
            alive = min(self.starved[slot], HORIZON)
            self.episodes.append((self.num_timesteps, float(alive), self.dark[slot] / self.time[slot]))
            self.time[slot], self.dark[slot], self.starved[slot] = 0, 0, np.inf
        return True


def live(condition: str, seed: int, timesteps: int, mortal: bool) -> dict[str, float]:
    """
    :param condition: a key of ``CONDITIONS``
    :param seed: of the run
    :param timesteps: of the run
    :param mortal: see :class:`DarkRoom`
    :return: by figure, its mean over the last fifth of training
    """
    weight, seek, homeostat = CONDITIONS[condition]
    env: VecEnv = VecInternalState(
        DummyVecEnv([lambda: DarkRoom(mortal)] * 8),
        dims=["energy"],
        constraints=["energy >= 0.2"],
        mu=[0.8],
        low=[0.0],
        high=[1.0],
    )
    env.seed(seed)
    if homeostat:
        env = VecHomeostatReward(env, weight=0.5, alive_bonus="auto", death_penalty=5.0)
    # The world model watches in every condition; at weight 0 nothing is paid.
    env = VecSurpriseBonus(env, weight=weight, beta=0.0, seek=seek)
    watch = Watch()
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=128, n_epochs=4, ent_coef=0.01, seed=seed, device="cpu")
    world = WorldModelCallback(net_arch=[32, 32], members=2, batch_size=128, train_freq=8)
    model.learn(timesteps, callback=[watch, world])
    late = [(alive, dark) for end, alive, dark in watch.episodes if end > 0.8 * timesteps]
    alive, dark = np.mean(late, axis=0)
    nll = float(np.mean([value for at, value in watch.surprise if at > 0.8 * timesteps]))
    return {STEPS: float(alive), DARK: float(dark), SURPRISE: nll}


def main() -> None:
    """Train, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=30_000, help="environment steps an agent")
    parser.add_argument("--immortal", action="store_true", help="the episode goes on when the agent has starved")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()

    rows: dict[str, list[dict[str, float]]] = {condition: [] for condition in CONDITIONS}
    for seed, condition in track(list(product(range(arguments.seeds), CONDITIONS)), "training"):
        rows[condition].append(live(condition, seed, arguments.timesteps, not arguments.immortal))
    kind = "immortal" if arguments.immortal else "mortal"
    title = f"dark room, {kind}, {arguments.timesteps:,} steps, {arguments.seeds} seeds: mean [95 %]"
    table, results = tabulate(title, rows, FIGURES)
    Console(width=150).print(table)
    path = arguments.output / "surprise.json"
    size = {"timesteps": arguments.timesteps, "seeds": arguments.seeds}
    save({**saved(path), kind: {**size, **results}}, path)


if __name__ == "__main__":
    main()
