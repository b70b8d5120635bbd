"""
What a shield costs: PPO on GridLife with the scent of food, with the shipped networks, in 8 environments. Bare, with
the layers alone, with the shipped shield (one forward pass of the viability critic judges an action, and the critic
learns at every step first and at every fourth later), with one whose critic always learns at every step, and with
``mode="verify"`` (which imagines where the critic is in doubt), all models' updates included. Trainings run in turns,
and ratios are taken turn by turn; then each agent plays on, without learning. Time is that of the one thread they run
in. A young agent brings its shield into doubt often, so trainings are as long as they are elsewhere::

    python -m benchmarks.shield_cost
    python -m benchmarks.shield_cost --turns 1 --timesteps 32768    # a quick look
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.kept import save
from persist_sb3 import hyperparams
from persist_sb3.callbacks import InternalModelCallback, MetricsCallback, ViabilityCallback, WorldModelCallback
from persist_sb3.equivariant import EquivariantMultiInputPolicy
from persist_sb3.wrappers import VecActionShield, VecHomeostatReward, VecInternalState

ENV = "GridLifeScent-v0"
POLICY = {"net_arch": [256, 256], "activation_fn": torch.nn.ReLU, "symmetries": ENV}
(SHIELD,) = hyperparams.load("ppo")[ENV]["vec_env_wrapper"][-1].values()
(VIABILITY,) = hyperparams.load("ppo")[ENV]["callback"][-1].values()
#: Parameters of the models that a look ahead imagines with: small ones, that learn less often once they know the world.
SMALL: dict[str, Any] = {"net_arch": [64, 64], "members": 2, "train_freq": {0: 8, 25_000: 32}}
#: The shield that looks ahead does so where the critic is this close to the threshold.
BAND = 0.05
#: Environment steps of playing on.
PLAYED = 32_768

Make = Callable[[VecEnv], tuple[VecEnv, list[BaseCallback]]]


def bare(venv: VecEnv) -> tuple[VecEnv, list[BaseCallback]]:
    """
    :param venv: bare environments
    :return: the same, and no callback
    """
    return venv, []


def layers(venv: VecEnv) -> tuple[VecEnv, list[BaseCallback]]:
    """
    :param venv: bare environments
    :return: with internal state and homeostat, and their callback
    """
    venv = VecHomeostatReward(VecInternalState(venv), w=[1.0, 0.5, 1.5], weight=0.5, alive_bonus="auto")
    return venv, [MetricsCallback()]


def critic(**changed: Any) -> Make:
    """
    :param changed: parameters of the callback that trains the critic, in the place of the shipped ones
    :return: makes environments with the shield, and callbacks
    """

    def make(venv: VecEnv) -> tuple[VecEnv, list[BaseCallback]]:
        venv, callbacks = layers(venv)
        return VecActionShield(venv, **SHIELD), [*callbacks, ViabilityCallback(**{**VIABILITY, **changed})]

    return make


def verify(venv: VecEnv) -> tuple[VecEnv, list[BaseCallback]]:
    """
    :param venv: bare environments
    :return: with the shield that looks ahead, and callbacks
    """
    venv, callbacks = layers(venv)
    models = [ViabilityCallback(**VIABILITY), InternalModelCallback(**SMALL), WorldModelCallback(**SMALL)]
    return VecActionShield(venv, **SHIELD, mode="verify", band=BAND), [*callbacks, *models]


CONDITIONS: dict[str, Make] = {
    "bare": bare,
    "layers": layers,
    "shield, as shipped": critic(),
    "shield, critic learns at every step": critic(train_freq=1),
    "shield that verifies": verify,
}


def measure(make: Make, timesteps: int) -> tuple[float, float]:
    """
    :param make: makes environments and callbacks
    :param timesteps: environment steps of the training
    :return: seconds a step of training, and of playing
    """
    venv, callbacks = make(make_vec_env(ENV, n_envs=8, seed=0))
    model = PPO(
        EquivariantMultiInputPolicy, venv, n_steps=256, batch_size=256, seed=0, device="cpu", policy_kwargs=POLICY
    )
    start = time.process_time()
    model.learn(timesteps, callback=callbacks or None)
    trained = time.process_time()
    observation: Any = venv.reset()
    for _ in range(PLAYED // 8):
        action, _ = model.predict(observation)
        observation = venv.step(action)[0]
    return (trained - start) / timesteps, (time.process_time() - trained) / PLAYED


def main() -> None:
    """Measure all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1, help="trainings each")
    parser.add_argument("--timesteps", type=int, default=300_000, help="environment steps a training")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()
    torch.set_num_threads(1)

    measure(bare, 2048)
    turns = [
        {name: measure(make, own.timesteps) for name, make in CONDITIONS.items()}
        for _ in track(range(own.turns), "training in turns")
    ]
    table = Table(
        title=f"PPO on {ENV}, 8 environments: ratio to bare PPO, median \\[least, greatest] of {own.turns} turns"
    )
    for column in ("", "training, µs a step", "ratio", "playing, µs a step", "ratio"):
        table.add_column(column, justify="right")
    results: dict[str, object] = {"turns": own.turns, "timesteps": own.timesteps}
    for name in CONDITIONS:
        seconds = np.array([turn[name] for turn in turns])
        ratios = seconds / np.array([turn["bare"] for turn in turns])
        cells = [
            (f"{1e6 * median(times):.0f}", f"{median(ratio):.2f} [{min(ratio):.2f}, {max(ratio):.2f}]")
            for times, ratio in zip(seconds.T, ratios.T, strict=True)
        ]
        table.add_row(name, *cells[0], *cells[1])
        results[name] = {"seconds a step": seconds.tolist(), "ratios": ratios.tolist()}
    Console(width=130).print(table)
    save(results, own.output / "shield_cost.json")


if __name__ == "__main__":
    main()
