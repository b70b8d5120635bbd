"""
Whether RND finds what PPO alone does not, and what it costs.

*Exploration*: PPO with and without ``RNDBonus`` on a GridLife that never harms, with one item at the far end of one
24x24 layout, 34 tiles from the start, and 128 steps to reach it. It is the only reward. Scores: the share of the 576
tiles that the agent has been on by the end of training, and the share of the last fifth of the training episodes in
which the item was found. With the intervals of the means: that of the difference (agents of one seed begin alike), and
the probability that an agent with RND scores more than one without (Agarwal et al., NeurIPS 2021).

*Cost*: CPU time of ``RNDBonus`` and ``SurpriseBonus`` and of their callbacks, without the reading of transitions,
which all callbacks share, per 1000 environment steps with 8 environments and observations of 60, in one thread, beside
that of PPO in the same run. The world model that surprise needs also serves the shield::

    python -m benchmarks.exploration                              # 5 seeds, 80k steps
    python -m benchmarks.exploration --seeds 2 --timesteps 50000  # a quick look
    python -m benchmarks.exploration --only cost
"""

import argparse
import time
from collections.abc import Callable, Mapping
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
from rich.table import Table
from rliable import library, metrics
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import persist_sb3  # noqa: F401  registers GridLife
from benchmarks.agents import intervals
from benchmarks.kept import kept, save, saved
from benchmarks.tables import written
from persist_sb3.callbacks import PersistCallback, RNDCallback, WorldModelCallback
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.wrappers import VecInternalState, VecRNDBonus, VecSurpriseBonus

ENV = "GridLifeFlat-v0"
HARMLESS = {"energy_decay": 0.0, "move_cost": 0.0, "temp_rate": 0.0, "hazard_damage": 0.0, "food": 0, "ringed_food": 0}
SPARSE: dict[str, Any] = {"items": 1, "item_regrowth": 0.0, "size": 24, "horizon": 128, "layout_seed": 0, "slip": 0.0}
LANDMARKS = {"hot_spots": 8, "cold_spots": 8, "spot_sigma": 2.0, "hazards": 60}
#: lambda_I of each condition.
CONDITIONS = {"PPO": 0.0, "PPO + RND": 0.3}
COVERED, FOUND = "share of the tiles visited", "share of episodes that find the item"
BATCH_SIZES = (512, 64)
#: Of a callback, that are timed.
METHODS = ("_on_rollout_start", "_on_step", "_on_rollout_end")


class Witness(BaseCallback):
    """Keeps Monitor's return of each training episode, when it ended, and when each tile was first visited."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int] = []
        self.returns: list[float] = []
        self.visited: dict[int, int] = {}

    def _on_step(self) -> bool:
        for snapshot in self.training_env.env_method("snapshot"):
            self.visited.setdefault(int(snapshot.cell), self.num_timesteps)
        for info in self.locals["infos"]:
            if "episode" in info:
                self.ends.append(self.num_timesteps)
                self.returns.append(info["episode"]["r"])
        return True


def explore(weight: float, seed: int, timesteps: int) -> dict[str, list[float]]:
    """
    :param weight: ``lambda_I``; at 0 there is no RND at all
    :param seed: of the run
    :param timesteps: of the run
    :return: by score, what it was in each fifth of the training: of ``COVERED`` at its end
    """
    env: VecEnv = make_vec_env(ENV, n_envs=8, seed=seed, env_kwargs={**HARMLESS, **SPARSE, **LANDMARKS})
    witness = Witness()
    callbacks: list[BaseCallback] = [witness]
    if weight > 0.0:
        env = VecRNDBonus(VecInternalState(env), weight=weight)
        callbacks.append(RNDCallback())
    model = PPO("MlpPolicy", env, n_steps=128, batch_size=256, n_epochs=4, ent_coef=0.01, seed=seed, device="cpu")
    model.learn(timesteps, callback=callbacks)
    fifth = np.minimum(np.array(witness.ends) * 5 // timesteps, 4)
    found = np.array(witness.returns) > 0.0
    first = np.array(list(witness.visited.values()))
    return {
        COVERED: [float((first <= (number + 1) * timesteps / 5).sum() / SPARSE["size"] ** 2) for number in range(5)],
        FOUND: [float(found[fifth == number].mean()) for number in range(5)],
    }


class Drift(gym.Env[Any, Any]):
    """Sixty numbers that wander, at next to no cost."""

    observation_space = spaces.Box(-np.inf, np.inf, (60,), dtype=np.float32)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.steps = self.np_random.normal(0.0, 0.1, (512, 60)).cumsum(axis=0).astype(np.float32)
        return self.steps[0], {"internal": np.array([0.5])}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.steps[self.time], 0.0, False, self.time == 511, {"internal": np.array([0.5])}


class Stopwatch:
    """
    Adds up the CPU time of a function.

    :param function: what is timed
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = self.function(*args, **kwargs)
        self.seconds += time.process_time() - start
        return result


class Reading(PersistCallback):
    """Reads the transitions first, so that the others find them read, and times that."""

    seconds = 0.0

    def _on_step(self) -> bool:
        start = time.process_time()
        self.store.read(self.locals)
        self.seconds += time.process_time() - start
        return True


def cost(batch_size: int, timesteps: int, surprise: bool) -> dict[str, float]:
    """
    :param batch_size: PPO's
    :param timesteps: environment steps
    :param surprise: whether there is ``SurpriseBonus`` beside ``RNDBonus``
    :return: milliseconds of CPU time per 1000 of them: of each layer, of each callback without the reading of
        transitions, of that reading, and of PPO (policy and training)
    """
    env: Any = VecRNDBonus(VecInternalState(DummyVecEnv([Drift] * 8), dims=["x"], constraints=["x >= 0.1"]))
    watches = {"RND layer": Stopwatch(env.layer.after)}
    env.layer.after = watches["RND layer"]
    callbacks: dict[str, LearningCallback] = {"RND callback": RNDCallback()}
    if surprise:
        env = VecSurpriseBonus(env, beta=0.0)
        watches["surprise layer"] = env.layer.after = Stopwatch(env.layer.after)
        callbacks["world model"] = WorldModelCallback()
    return time_parts(env, watches, callbacks, batch_size, timesteps)


def time_parts(
    env: Any,
    watches: Mapping[str, Stopwatch],
    callbacks: Mapping[str, LearningCallback],
    batch_size: int,
    timesteps: int,
) -> dict[str, float]:
    """
    :param env: what PPO learns in
    :param watches: stopwatches in its layers, by name
    :param callbacks: that learn beside it, by name
    :param batch_size: of PPO
    :param timesteps: environment steps
    :return: milliseconds of CPU time per 1000 of them: of each layer, of each callback without the reading of
        transitions, of that reading, and of PPO (policy and training)
    """
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=batch_size, seed=0, device="cpu")
    reading = Reading()
    parts = {}
    for name, callback in callbacks.items():
        parts[name] = [Stopwatch(getattr(callback, method)) for method in METHODS]
        for method, watch in zip(METHODS, parts[name], strict=True):
            setattr(callback, method, watch)
    stepping = env.step = Stopwatch(env.step)
    total = Stopwatch(model.learn)
    total(timesteps, callback=[reading, *callbacks.values()])
    seconds = {name: sum(watch.seconds for watch in watches) for name, watches in parts.items()}
    seconds["reading"] = reading.seconds
    seconds["PPO"] = total.seconds - stepping.seconds - sum(seconds.values())
    seconds |= {name: watch.seconds for name, watch in watches.items()}
    return {name: 1e6 * value / timesteps for name, value in seconds.items()}


def compare(scores: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """
    :param scores: one a seed, by condition
    :return: interval of each mean, of the difference, and of the probability of improvement
    """
    alone, bonus = (scores[name] for name in CONDITIONS)
    better, limits = library.get_interval_estimates(
        {"": (bonus[:, None], alone[:, None])},
        metrics.probability_of_improvement,
        reps=5_000,
        random_state=np.random.RandomState(0),
    )
    return {
        **intervals(scores),
        "difference": intervals({"": bonus - alone})[""],
        "probability of improvement": (float(better[""]), float(limits[""][0].item()), float(limits[""][1].item())),
    }


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="agents a condition")
    parser.add_argument("--timesteps", type=int, default=80_000, help="environment steps an agent")
    parser.add_argument("--only", choices=["exploration", "cost"], help="leave the other out")
    parser.add_argument(
        "--folder", type=Path, default=Path("logs/benchmarks/exploration"), help="what is there is kept"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.output / "exploration.json"
    results = saved(path)

    if arguments.only != "cost":
        work = [(name, seed) for seed in range(arguments.seeds) for name in CONDITIONS]
        rows: dict[str, list[dict[str, list[float]]]] = {name: [] for name in CONDITIONS}
        for name, seed in track(work, "training"):
            run = arguments.folder / f"{arguments.timesteps}-{CONDITIONS[name]}-{seed}.json"
            rows[name].append(kept(run, partial(explore, CONDITIONS[name], seed, arguments.timesteps)))
        for score in (COVERED, FOUND):
            by_fifth = {name: np.array([row[score] for row in rows[name]]) for name in CONDITIONS}
            last = compare({name: values[:, 4] for name, values in by_fifth.items()})
            results[score] = last | {"fifths by seed": {name: values.tolist() for name, values in by_fifth.items()}}
            table = Table(
                title=f"{score}, {arguments.timesteps:,} steps, {arguments.seeds} seeds, by fifth of training"
            )
            for column in ("", "1st", "2nd", "3rd", "4th", "last [95 % interval]"):
                table.add_column(column, justify="right")
            for name, estimate in last.items():
                fifths = by_fifth[name].mean(axis=0)[:4] if name in by_fifth else []
                cells = [f"{value:.3f}" for value in fifths] or [""] * 4
                table.add_row(name, *cells, written(estimate, ".3f"))
            Console().print(table)
        results |= {"timesteps": arguments.timesteps, "seeds": arguments.seeds, "weight": CONDITIONS["PPO + RND"]}

    if arguments.only != "exploration":
        table = Table(title="CPU time per 1000 environment steps, 8 envs, observations of 60, ms: layers and callbacks")
        names = ("RND layer", "RND callback", "surprise layer", "world model", "reading")
        for column in ("PPO's batch size", "PPO itself", *names, "RND together", "share of PPO"):
            table.add_column(column, justify="right")
        results["cost"] = {}
        for batch_size, surprise in product(BATCH_SIZES, (False, True)):
            cost(batch_size, 4096, surprise)
            ms = cost(batch_size, 20_480, surprise)
            results["cost"][f"{batch_size}{', with surprise' if surprise else ''}"] = ms
            rnd = ms["RND layer"] + ms["RND callback"]
            cells = [f"{ms[name]:.1f}" if name in ms else "" for name in ("PPO", *names)]
            table.add_row(str(batch_size), *cells, f"{rnd:.1f}", f"{rnd / ms['PPO']:.0%}")
        Console(width=130).print(table)

    save(results, path)


if __name__ == "__main__":
    main()
