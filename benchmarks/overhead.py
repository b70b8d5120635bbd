"""
What the layers cost: PPO on GridLife through ``InternalState``, ``HomeostatReward`` and ``MetricsCallback``, against
bare PPO on the bare environment. The two run in turns, and the ratio is taken pair by pair. Time is that of the one
thread they run in: the wall clock of a core that nobody shares::

    python benchmarks/overhead.py
    python benchmarks/overhead.py --pairs 9 --timesteps 40000
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import persist_sb3  # noqa: F401  registers GridLife
from persist_sb3.callbacks import MetricsCallback
from persist_sb3.wrappers import VecHomeostatReward, VecInternalState

ENV = "GridLife-v0"


def make_env(num_envs: int, layers: bool) -> VecEnv:
    """
    :param num_envs: how many
    :param layers: with the layers around them
    :return: environments as SB3 makes them, monitored
    """
    venv = make_vec_env(ENV, n_envs=num_envs, seed=0)
    if layers:
        venv = VecHomeostatReward(VecInternalState(venv), w=[1.0, 0.5, 1.5], alive_bonus="auto", death_penalty=5.0)
    return venv


def train(layers: bool, timesteps: int) -> float:
    """
    :param layers: with them, and with the callback
    :param timesteps: environment steps
    :return: seconds of training
    """
    model = PPO("MultiInputPolicy", make_env(8, layers), n_steps=256, batch_size=256, seed=0, device="cpu")
    start = time.process_time()
    model.learn(timesteps, callback=MetricsCallback() if layers else None)
    return time.process_time() - start


def peak_memory(layers: bool, connection: "multiprocessing.connection.Connection") -> None:
    """
    :param layers: with them, and with the callback
    :param connection: takes the peak memory of this process while 64 environments run, in MB
    """
    model = PPO("MultiInputPolicy", make_env(64, layers), n_steps=32, batch_size=256, seed=0, device="cpu")
    model.learn(8192, callback=MetricsCallback() if layers else None)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0)


def measure_memory(layers: bool) -> float:
    """
    :param layers: with them, and with the callback
    :return: peak memory of a fresh process, in MB
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=peak_memory, args=(layers, there))
    process.start()
    peak: float = here.recv()
    process.join()
    return peak


def main() -> None:
    """Measure both, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="trainings each")
    parser.add_argument("--timesteps", type=int, default=20_480, help="environment steps a training")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    train(True, 2048)
    pairs = [
        (train(False, arguments.timesteps), train(True, arguments.timesteps))
        for _ in track(range(arguments.pairs), "training in turns")
    ]
    ratios = [layered / bare for bare, layered in pairs]
    bare_memory, layered_memory = measure_memory(False), measure_memory(True)

    table = Table(title=f"PPO on {ENV}: layers and MetricsCallback against bare")
    for column in ("", "bare", "layers", "ratio or difference"):
        table.add_column(column, justify="right")
    bare, layered = (median(times) / arguments.timesteps * 1e6 for times in zip(*pairs, strict=True))
    spread = f"{median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"
    table.add_row("8 envs, µs a step", f"{bare:.0f}", f"{layered:.0f}", spread)
    difference = layered_memory - bare_memory
    table.add_row("64 envs, peak MB", f"{bare_memory:.0f}", f"{layered_memory:.0f}", f"{difference:+.1f}")
    Console().print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {"pairs_seconds": pairs, "ratios": ratios, "peak_mb": {"bare": bare_memory, "layers": layered_memory}}
    (arguments.output / "overhead.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
