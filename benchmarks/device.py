"""
When a GPU pays: milliseconds of one update of what learns in a run, on the CPU, with one thread and with all, and on
CUDA, in one run.

An update of a model is what its callback does each time: draw a batch from the transitions, take a gradient step, and
bring the layers' copy up to date. World model, latent model and viability critic have their default sizes and 4 times
those widths, and default batches (256 transitions; 16 stretches of 32 steps for the latent model) and 4 times those.
An update of PPO is a gradient step on 256 transitions, by an equivariant and a plain policy; acting is what the policy
does for 8 environments at once. All are on GridLife with the scent of food. Ratios are of the faster CPU to CUDA: above
1 the GPU pays. Without CUDA the CPU is measured alone::

    python -m benchmarks.device
    python -m benchmarks.device --repeats 3 --rows critic      # a quick look
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import persist_sb3  # noqa: F401  registers GridLife
from persist_sb3.callbacks import ViabilityCallback, WorldModelCallback
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.equivariant import EquivariantMultiInputPolicy
from persist_sb3.wrappers import VecInternalState

ENV = "GridLifeScent-v0"
NEVER = 10**9
#: Seconds that a repetition takes at least.
LEAST = 0.06

Update = Callable[[], object]

#: A model's callback, its default batch, and its parameters at the default width and at 4 times that.
MODELS: dict[str, tuple[type[Any], int, tuple[dict[str, Any], dict[str, Any]]]] = {
    "world model": (WorldModelCallback, 256, ({}, {"net_arch": [512, 512]})),
    "latent model": (
        WorldModelCallback,
        16,
        ({"kind": "latent"}, {"kind": "latent", "gru_size": 512, "units": 512}),
    ),
    "viability critic": (ViabilityCallback, 256, ({}, {"net_arch": [512, 512]})),
}
POLICIES = {"equivariant": EquivariantMultiInputPolicy, "plain": "MultiInputPolicy"}
WIDTHS = (256, 1024)


def learner(kind: str, width: int, device: str) -> LearningCallback:
    """
    :param kind: a key of ``MODELS``
    :param width: 0 for the default, 1 for 4 times that
    :param device: where it learns
    :return: the callback, with 512 transitions to learn from, of which it has not learned
    """
    callback_class, _, sizes = MODELS[kind]
    callback: LearningCallback = callback_class(learning_starts=NEVER, device=device, **sizes[width])
    venv = VecInternalState(make_vec_env(ENV, n_envs=8, seed=0))
    model = PPO("MultiInputPolicy", venv, n_steps=64, batch_size=512, n_epochs=1, seed=0, device="cpu")
    model.learn(512, callback=callback)
    return callback


def learning(callback: LearningCallback, batch_size: int) -> Update:
    """
    :param callback: what :func:`learner` returned
    :param batch_size: of the gradient steps
    :return: an update
    """

    def update() -> None:
        callback.batch_size = batch_size
        callback._update(callback._sample())
        callback._publish()

    return update


def ppo(policy: str, width: int, device: str) -> tuple[Update, Update]:
    """
    :param policy: a key of ``POLICIES``
    :param width: of both hidden layers
    :param device: of the policy
    :return: two gradient steps, and acting once
    """
    kwargs: dict[str, Any] = {"net_arch": [width, width], "activation_fn": torch.nn.ReLU}
    if policy == "equivariant":
        kwargs["symmetries"] = ENV
    venv = make_vec_env(ENV, n_envs=8, seed=0)
    model: Any = PPO(
        POLICIES[policy],  # type: ignore[arg-type]
        venv,
        n_steps=64,
        batch_size=256,
        n_epochs=1,
        seed=0,
        device=device,
        policy_kwargs=kwargs,
    )
    model.learn(512)
    observation: Any = venv.reset()
    return model.train, lambda: model.predict(observation)


def rows() -> Iterator[tuple[str, Callable[[str], list[tuple[str, Update, int]]]]]:
    """
    :return: what is prepared together, and how: on a device, names of rows, what is measured, and how many updates
        that is
    """
    for kind in MODELS:
        for width, wide in enumerate(("", ", 4x wider")):

            def of_model(device: str, kind: str = kind, width: int = width, wide: str = wide) -> Any:
                callback, batch = learner(kind, width, device), MODELS[kind][1]
                return [(f"{kind}{wide}, batches of {n}", learning(callback, n), 1) for n in (batch, 4 * batch)]

            yield f"{kind}{wide}", of_model
    for policy in POLICIES:
        for size in WIDTHS:

            def of_policy(device: str, policy: str = policy, size: int = size) -> Any:
                update, act = ppo(policy, size, device)
                name = f"PPO, {policy} [{size}, {size}]"
                return [(f"{name}, update", update, 2), (f"{name}, acting", act, 1)]

            yield f"PPO, {policy} [{size}, {size}]", of_policy


def measure(update: Update, count: int, repeats: int) -> list[float]:
    """
    :param update: what is measured; it leaves nothing to be waited for but work on the GPU
    :param count: updates that it makes
    :param repeats: measurements
    :return: milliseconds an update, in each
    """

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            update()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds(2)
    calls = ceil(LEAST / seconds(1))
    return [1000.0 * seconds(calls) / (calls * count) for _ in range(repeats)]


def spread(values: list[float]) -> str:
    """
    :param values: repetitions
    :return: their median and range, as text
    """
    middle, low, high = (f"{x:.3g}" if x < 1000.0 else f"{x:.0f}" for x in (median(values), min(values), max(values)))
    return f"{middle} [{low}, {high}]"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    parser.add_argument("--rows", default="", help="only those with this in their name")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = {"CPU, 1 thread": ("cpu", 1)}
    if cores > 1:
        settings[f"CPU, {cores} threads"] = ("cpu", cores)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if gpu is not None:
        settings["CUDA"] = ("cuda", cores)
    results: dict[str, Any] = {
        "gpu": gpu,
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "torch": torch.__version__,
        "repeats": own.repeats,
        "observation": spaces.flatdim(gym.make(ENV).observation_space),
        "milliseconds": {},
    }
    table = Table(
        title=f"Milliseconds an update, median and range of {own.repeats}; {gpu or 'no GPU here'}, {cores} cores"
    )
    for column in ("", *settings, *(["CPU / CUDA"] if gpu else [])):
        table.add_column(column, justify="right", no_wrap=column == "")
    for name, prepare in rows():
        if own.rows not in name:
            continue
        times: dict[str, dict[str, list[float]]] = {}
        for device in dict.fromkeys(device for device, _ in settings.values()):
            torch.set_num_threads(1)
            prepared = prepare(device)
            for setting, (where, threads) in settings.items():
                if where == device:
                    torch.set_num_threads(threads)
                    for row, update, count in prepared:
                        times.setdefault(row, {})[setting] = measure(update, count, own.repeats)
        for row, found in times.items():
            cells = [spread(found[setting]) for setting in settings]
            if gpu is not None:
                fastest = min((found[s] for s in settings if s != "CUDA"), key=median)
                cells.append(spread([cpu / cuda for cpu, cuda in zip(fastest, found["CUDA"], strict=True)]))
            table.add_row(row, *cells)
            results["milliseconds"][row] = found
    console = Console(width=150)
    console.print(table)
    if gpu is None:
        console.print("PyTorch finds no CUDA here: the CPU was measured alone.")
    own.output.mkdir(parents=True, exist_ok=True)
    (own.output / "device.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
