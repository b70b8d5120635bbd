"""
What the intrinsic signals cost: CPU time of `RNDBonus`, `SurpriseBonus` and `EmpowermentBonus`, all three at once, and
of what trains them, per 1000 environment steps with 8 environments and observations of 60, in one thread, beside that
of PPO in the same run.

A signal is its layer, and the callback that trains what it pays by. The world model that surprise and empowerment ask,
which the shield needs as well, stands apart: the ensemble at its default size, a small one, and the latent model. So
does the reading of transitions, which all callbacks share::

    python -m benchmarks.signals
    python -m benchmarks.signals --sizes small --batch-sizes 512      # a quick look
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.exploration import Drift, Stopwatch, time_parts
from benchmarks.kept import save
from persist_sb3.callbacks import EmpowermentCallback, RNDCallback, WorldModelCallback
from persist_sb3.callbacks.learning import LearningCallback
from persist_sb3.wrappers import VecEmpowermentBonus, VecInternalState, VecRNDBonus, VecSurpriseBonus

#: Parameters of the world model and of what asks it about empowerment. The small ones are chosen by their price alone.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "small": (
        {"net_arch": [64, 64], "members": 2, "train_freq": 8},
        {"horizon": 1, "states": 8, "train_freq": 64, "gradient_steps": 2, "net_arch": [32, 32]},
    ),
    "latent": ({"kind": "latent"}, {"horizon": 1, "states": 8, "train_freq": 64, "gradient_steps": 2}),
}
SIGNALS = ("RND", "surprise", "empowerment")


def cost(size: str, batch_size: int, timesteps: int) -> dict[str, float]:
    """
    :param size: a key of ``SIZES``
    :param batch_size: PPO's
    :param timesteps: environment steps
    :return: milliseconds of CPU time per 1000 of them
    """
    world, empowerment = SIZES[size]
    env: Any = DummyVecEnv([Drift] * 8)
    # What the observation shows needs no model of its own.
    env = VecInternalState(env, dims=["x"], sources={"x": "obs[0]"}, constraints=["x >= -1"])
    watches = {}
    for name, wrapper in zip(SIGNALS, (VecRNDBonus, VecSurpriseBonus, VecEmpowermentBonus), strict=True):
        env = wrapper(env, **({"beta": 0.0} if name == "surprise" else {}))
        watches[f"{name}, layer"] = env.layer.after = Stopwatch(env.layer.after)
    callbacks: dict[str, LearningCallback] = {
        "RND, callback": RNDCallback(),
        "world model": WorldModelCallback(learning_starts=64, **world),
        "empowerment, callback": EmpowermentCallback(min_updates=1, learning_starts=8, **empowerment),
    }
    return time_parts(env, watches, callbacks, batch_size, timesteps)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=10_240, help="environment steps a measurement")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="leave the others out")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[512, 64], help="of PPO")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    table = Table(title="CPU time per 1000 environment steps, 8 envs, observations of 60, ms: layer + callback")
    together = ("three signals", "of PPO")
    for column in ("world model", "PPO's batch", "PPO", *SIGNALS, *together, "world model", "reading"):
        table.add_column(column, justify="right")
    results: dict[str, Any] = {"timesteps": arguments.timesteps}
    for size, batch_size in product(arguments.sizes, arguments.batch_sizes):
        ms = cost(size, batch_size, arguments.timesteps)
        signals = {name: [ms[key] for key in (f"{name}, layer", f"{name}, callback") if key in ms] for name in SIGNALS}
        ms["three signals"] = sum(sum(parts) for parts in signals.values())
        results[f"{size}, batches of {batch_size}"] = ms
        table.add_row(
            size,
            str(batch_size),
            f"{ms['PPO']:.0f}",
            *(" + ".join(f"{part:.1f}" for part in parts) for parts in signals.values()),
            f"{ms['three signals']:.1f}",
            f"{ms['three signals'] / ms['PPO']:.0%}",
            f"{ms['world model']:.0f}",
            f"{ms['reading']:.1f}",
        )
    Console(width=140).print(table)
    save(results, arguments.output / "signals.json")


if __name__ == "__main__":
    main()
