"""
What aversion to risk costs and saves: QR-DQN that maximises the mean of the worst share ``alpha`` of its returns, on a
walk along a cliff in the wind.

The shortest way from the start to the goal leads along the edge, where every gust is a fall; the ways further up are
longer and safer. A step costs 0.4, a fall 4 and the episode. ``height`` (rows above the edge) is the internal
variable, ``height >= 0`` its constraint, and a fall its violation. Every agent has the same hyperparameters and differs
in ``risk_alpha`` alone; ``alpha = 1`` is QR-DQN as it is. The worst quarter of the returns along the edge is -4.5 on
average, and one row further up -3.7, where the mean is -3.2 and -3.6 (simulated, 200,000 episodes each)::

    python -m benchmarks.risk                # 3 seeds, 15k steps, 400 test episodes an agent
    python -m benchmarks.risk --seeds 10     # narrower intervals
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from sb3_contrib import QRDQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.kept import kept, save
from benchmarks.tables import tabulate
from persist_sb3.evaluation import evaluate
from persist_sb3.risk import RiskQRDQNPolicy, cvar_of_quantiles
from persist_sb3.wrappers import VecInternalState

ROWS, COLUMNS = 4, 8
GUST = 0.03
STEP_COST, FALL = 0.4, 4.0
ALPHAS = (1.0, 0.5, 0.25, 0.1)
FIGURES = ("falls", "return", "worst quarter of returns", "length")


class WindyCliff(gym.Env[NDArray[np.float32], np.int64]):
    """
    A grid whose lowest row lies at the edge of a cliff, but for its ends: start and goal. Up, right, down, left; a gust
    then pushes one row down. From the edge that is a fall, and from a row above it is not.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (ROWS * COLUMNS,), dtype=np.float32)
        self.action_space = spaces.Discrete(4)

    def _seen(self) -> NDArray[np.float32]:
        seen = np.zeros(ROWS * COLUMNS, dtype=np.float32)
        seen[max(self.row, 0) * COLUMNS + self.column] = 1.0
        return seen

    def _info(self) -> dict[str, Any]:
        return {"internal": np.array([float(self.row)])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.row = self.column = self.time = 0
        return self._seen(), self._info()

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        up, right = ((1, 0), (0, 1), (-1, 0), (0, -1))[int(action)]
        row, self.column = self.row + up, int(np.clip(self.column + right, 0, COLUMNS - 1))
        sheltered = self.column in (0, COLUMNS - 1)
        row -= int(not sheltered and self.np_random.uniform() < GUST)
        self.row = int(np.clip(row, 0 if sheltered else -1, ROWS - 1))
        self.time += 1
        fell, there = self.row < 0, self.row == 0 and self.column == COLUMNS - 1
        reward = -STEP_COST - FALL * fell
        return self._seen(), reward, fell or there, self.time >= 60 and not (fell or there), self._info()


def make(n: int, seed: int) -> VecInternalState:
    """
    :param n: environments
    :param seed: of the first
    :return: them
    """
    venv = make_vec_env(WindyCliff, n, seed=seed, vec_env_cls=DummyVecEnv)
    return VecInternalState(venv, dims=["height"], constraints=["height >= 0"], mu=[2.0], low=[-1.0], high=[ROWS - 1.0])


def agent(alpha: float, seed: int, timesteps: int) -> QRDQN:
    """
    :param alpha: share of the worst returns that counts
    :param seed: of the run
    :param timesteps: of the run
    :return: a trained agent
    """
    model = QRDQN(
        RiskQRDQNPolicy,
        make(1, seed),
        learning_rate=1e-3,
        learning_starts=1000,
        batch_size=64,
        gamma=0.99,
        train_freq=4,
        target_update_interval=200,
        exploration_fraction=0.5,
        exploration_final_eps=0.05,
        policy_kwargs={"net_arch": [64], "n_quantiles": 40, "risk_alpha": alpha},
        seed=seed,
        device="cpu",
    )
    return model.learn(timesteps)


def measure(model: QRDQN, episodes: int) -> list[float]:
    """
    :param model: a trained agent
    :param episodes: how many it plays
    :return: the :data:`FIGURES`
    """
    records = [episode.record for episode in evaluate(model, make(20, 10_000), episodes, seed=10_000)]
    returns = torch.tensor([record.task_return for record in records])
    return [
        float(np.mean([record.violations > 0 for record in records])),
        float(returns.mean()),
        float(cvar_of_quantiles(returns, 0.25)),
        float(np.mean([record.length for record in records])),
    ]


def test(alpha: float, seed: int, timesteps: int, episodes: int) -> list[float]:
    """
    :param alpha: share of the worst returns that counts
    :param seed: of the run
    :param timesteps: of the run
    :param episodes: how many the trained agent plays
    :return: the :data:`FIGURES`
    """
    return measure(agent(alpha, seed, timesteps), episodes)


def main() -> None:
    """Train, evaluate, and write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="agents an alpha")
    parser.add_argument("--timesteps", type=int, default=15_000, help="environment steps an agent")
    parser.add_argument("--episodes", type=int, default=400, help="test episodes an agent")
    parser.add_argument(
        "--folder", type=Path, default=Path("logs/benchmarks/risk"), help="where agents' scores are kept"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()
    torch.set_num_threads(1)

    rows: dict[str, list[dict[str, float]]] = {}
    folder = own.folder / f"{own.timesteps}-{own.episodes}"
    for alpha, seed in track(list(product(ALPHAS, range(own.seeds))), "training"):
        values = kept(folder / f"{alpha:g}-{seed}.json", partial(test, alpha, seed, own.timesteps, own.episodes))
        rows.setdefault(f"alpha = {alpha:g}", []).append(dict(zip(FIGURES, values, strict=True)))

    title = f"QR-DQN along a cliff, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]"
    table, results = tabulate(title, rows, dict.fromkeys(FIGURES, ".3f"))
    Console(width=150).print(table)
    size = {key: getattr(own, key) for key in ("seeds", "timesteps", "episodes")}
    save({**size, **results}, own.output / "risk.json")

    figure_, axes = plt.subplots(figsize=(5, 3.5))
    falls, returns_ = results["falls"], results["return"]
    means = ([found["mean"][0] for found in figure.values()] for figure in (falls, returns_))
    axes.plot(*means, "-", color="0.8", zorder=0)
    for name in rows:
        axes.plot(falls[name]["seeds"], returns_[name]["seeds"], "o", ms=3, color="0.6")
        axes.plot(falls[name]["mean"][0], returns_[name]["mean"][0], "o", label=name)
    axes.set(xlabel="share of episodes that end in a fall", ylabel="return")
    axes.legend(frameon=False)
    figure_.savefig(own.output / "risk.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
