"""
Whether intrinsic rewards in a replay buffer should be those of the day or of the moment.

SAC in a U-shaped maze: the agent starts at one end, the only reward is at the other, and 46 steps of the 150 in an
episode are the least that it takes to get there. Without a bonus; with `RNDBonus` in SB3's replay buffer, which keeps
each bonus as it was (stale); with the same in `RecomputedBonusReplayBuffer`, which pays what it is now. Scores: the
share of the last fifth of the training episodes that reach the end, the share of the maze's cells that were visited,
and how many times larger the bonuses kept in the buffer are, at the end of training, than the same ones would be now.
CPU time per 1000 steps is that of the process, everything included. Agents that were trained before are not again::

    python -m benchmarks.stale_bonus
    python -m benchmarks.stale_bonus --seeds 1 --timesteps 6000      # a quick look
"""

import argparse
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.kept import kept, save
from benchmarks.tables import tabulate
from persist_sb3.buffers import RecomputedBonusReplayBuffer
from persist_sb3.callbacks import RNDCallback
from persist_sb3.wrappers import VecInternalState, VecRNDBonus

#: Weight of the bonus, and the replay buffer.
CONDITIONS: dict[str, tuple[float, type[ReplayBuffer]]] = {
    "no bonus": (0.0, ReplayBuffer),
    "stale": (5.0, ReplayBuffer),
    "recomputed": (5.0, RecomputedBonusReplayBuffer),
}
FOUND = "episodes that reach the end, last fifth"
FIRST = "steps before the end is first reached"
COVERED = "share of cells visited"
AGE = "bonus kept / bonus now"
COST = "CPU time per 1000 steps, s"
FIGURES = {FOUND: ".2f", FIRST: ".0f", COVERED: ".2f", AGE: ".2f", COST: ".2f"}

CELLS, STRIDE, HORIZON = 10, 0.05, 150
START, GOAL = np.array([0.1, 0.1]), np.array([0.1, 0.9])
CENTRES = np.stack(np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 6)), axis=-1).reshape(-1, 2)


class UMaze(gym.Env[Any, Any]):
    """A square with a wall from the left almost to the right, and a point that moves in it."""

    observation_space = spaces.Box(0.0, 1.0, (2 + len(CENTRES),), dtype=np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)

    def _observe(self) -> tuple[NDArray[np.float32], dict[str, Any]]:
        near = np.exp(-np.square(self.place - CENTRES).sum(axis=1) / (2 * 0.12**2))
        cell = tuple((self.place * CELLS).astype(int).clip(0, CELLS - 1).tolist())
        observation = np.concatenate([self.place, near]).astype(np.float32)
        return observation, {"internal": np.array([0.5]), "cell": cell}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = START + self.np_random.uniform(-0.03, 0.03, 2), 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        there = (self.place + STRIDE * np.clip(action, -1.0, 1.0)).clip(0.0, 1.0)
        # The wall is a tenth thick, and no step crosses it.
        if not (0.45 < there[1] < 0.55 and there[0] < 0.7):
            self.place = there
        arrived = bool(np.square(self.place - GOAL).sum() < 0.1**2)
        observation, info = self._observe()
        return observation, float(arrived), arrived, self.time >= HORIZON, info


class Watch(BaseCallback):
    """Keeps which cells were visited, and which episodes reached the end."""

    def _on_training_start(self) -> None:
        self.cells: set[tuple[int, int]] = set()
        self.episodes: list[tuple[int, bool]] = []

    def _on_step(self) -> bool:
        self.cells.update(info["cell"] for info in self.locals["infos"])
        for slot in np.flatnonzero(self.locals["dones"]):
            truncated = self.locals["infos"][slot].get("TimeLimit.truncated", False)
            self.episodes.append((self.num_timesteps, not truncated))
        return True


def explore(condition: str, seed: int, timesteps: int) -> dict[str, float]:
    """
    :param condition: a key of ``CONDITIONS``
    :param seed: of the run
    :param timesteps: of the run
    :return: the figures
    """
    weight, buffer = CONDITIONS[condition]
    env: Any = VecInternalState(DummyVecEnv([UMaze] * 4), dims=["x"], constraints=["x >= 0.1"])
    env.seed(seed)
    watch = Watch()
    callbacks: list[BaseCallback] = [watch]
    if weight:
        env = VecRNDBonus(env, weight=weight)
        callbacks.append(RNDCallback(batch_size=64, learning_rate=1e-3))
    model = SAC(
        "MlpPolicy",
        env,
        learning_starts=500,
        batch_size=128,
        train_freq=4,
        gradient_steps=8,
        learning_rate=1e-3,
        gamma=0.98,
        ent_coef="auto_0.1",
        policy_kwargs={"net_arch": [64, 64]},
        replay_buffer_class=buffer,
        seed=seed,
        device="cpu",
    )
    began = time.process_time()
    model.learn(timesteps, callback=callbacks)
    seconds = time.process_time() - began
    ends = np.array(watch.episodes)
    found = ends[ends[:, 1] > 0, 0]
    age = np.nan
    if isinstance(model.replay_buffer, RecomputedBonusReplayBuffer):
        kept = model.replay_buffer
        rows, slots = np.divmod(np.arange(kept.size() * kept.n_envs), kept.n_envs)
        age = float(kept.bonuses[rows, slots].mean() / kept.bonus(rows, slots).mean())
    return {
        FOUND: float(ends[ends[:, 0] > 0.8 * timesteps, 1].mean()),
        FIRST: float(found.min()) if len(found) else float(timesteps),
        # Half of two columns of cells lies in the wall, and can be visited all the same.
        COVERED: len(watch.cells) / CELLS**2,
        AGE: age,
        COST: 1000.0 * seconds / timesteps,
    }


def main() -> None:
    """Train, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=12_000, help="environment steps an agent")
    parser.add_argument(
        "--folder", type=Path, default=Path("logs/benchmarks/stale_bonus"), help="what is there is kept"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    rows: dict[str, list[dict[str, float]]] = {condition: [] for condition in CONDITIONS}
    for seed, condition in track(list(product(range(arguments.seeds), CONDITIONS)), "training"):
        file = arguments.folder / f"{arguments.timesteps}-{condition}-{seed}.json"
        rows[condition].append(kept(file, partial(explore, condition, seed, arguments.timesteps)))
    title = f"SAC in a U-maze, {arguments.timesteps:,} steps, {arguments.seeds} seeds: mean [95 %]"
    table, results = tabulate(title, rows, FIGURES)
    Console(width=130).print(table)
    size = {"timesteps": arguments.timesteps, "seeds": arguments.seeds}
    save({**size, **results}, arguments.output / "stale_bonus.json")


if __name__ == "__main__":
    main()
