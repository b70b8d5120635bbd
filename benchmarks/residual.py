"""
What a residual critic knows before it has seen harm: of two problems whose truth is known, with actions that nobody
chose, and so without what a policy learns meanwhile.

- The lander with a tank: random firings never come near the reserve. Critics that learned from the same transitions
  are asked about states that were met, with the fuel set right above the reserve: there a firing of the main engine
  breaks it, and must not pass.
- Recovery RL's corridor: uniformly random actions under a shield. Collisions are counted until the end, most of which
  come before the shield judges::

    python -m benchmarks.residual                # 3 seeds, about 2 minutes of CPU; the lander needs gymnasium[box2d]
    python -m benchmarks.residual --seeds 1      # a quick look
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.kept import save
from benchmarks.tables import tabulate
from persist_sb3.buffers import ExecutedActionReplayBuffer
from persist_sb3.callbacks import ViabilityCallback
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.wrappers import VecActionShield, VecInternalState

ENVS = 8
#: Right above the lander's reserve of 0.1: a firing of the main engine takes 0.006.
FUEL = 0.104
#: Of the lander's shipped shield.
THRESHOLD = 0.05
MAIN_ENGINE = 2

#: Parameters of the shield and of the critic's callback.
SHIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "usual warm-up": ({}, {"gradient_steps": 2}),
    "early": ({"min_updates": 200}, {"gradient_steps": 4, "learning_starts": 256}),
    "residual, early": ({"min_updates": 50}, {"gradient_steps": 4, "learning_starts": 64, "residual": True}),
}
COLLISIONS, REFUSED = "collisions", "actions changed, share"
PASSES, VALUE, SEEN = "firing passes, share", "value of firing", "least fuel seen"


class Count(BaseCallback):
    """Counts violating steps and changed actions."""

    def _on_training_start(self) -> None:
        self.violations = self.interventions = 0

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.violations += sum(info["cost"] > 0.0 for info in infos)
        self.interventions += sum(bool(info.get("intervened", False)) for info in infos)
        return True


def corridor(name: str, seed: int, timesteps: int) -> dict[str, float]:
    """
    :param name: one of :data:`SHIELDS`
    :param seed: of the run
    :param timesteps: of random actions
    :return: what happened
    """
    shield, critic = SHIELDS[name]
    venv: VecEnv = VecInternalState(DummyVecEnv([lambda: gym.make("Navigation1-v0")] * ENVS))
    venv = VecActionShield(venv, threshold=0.1, **shield)
    # It never begins to learn, so its actions are uniformly random.
    model = SAC(
        "MlpPolicy",
        venv,
        learning_starts=timesteps,
        buffer_size=timesteps,
        replay_buffer_class=ExecutedActionReplayBuffer,
        seed=seed,
        device="cpu",
    )
    count = Count()
    model.learn(timesteps, callback=[ViabilityCallback(train_freq=1, **critic), count])
    return {COLLISIONS: count.violations, REFUSED: count.interventions / model.num_timesteps}


def lander(seed: int, timesteps: int) -> dict[str, dict[str, float]]:
    """
    :param seed: of the run
    :param timesteps: of random actions
    :return: what critics say about a firing that breaks the reserve, by critic
    """
    found = {}
    for name, residual in (("plain", False), ("residual", True)):
        venv = VecInternalState(DummyVecEnv([lambda: gym.make("examples.lunarlander:LunarLanderFuel-v0")] * ENVS))
        # It never learns, and no critic acts: both see the same.
        model = PPO(
            "MlpPolicy", venv, n_steps=125, batch_size=1000, n_epochs=1, learning_rate=0.0, seed=seed, device="cpu"
        )
        callback = ViabilityCallback(train_freq=1, residual=residual)
        model.learn(timesteps, callback=callback)
        found[name] = _asked(callback)
    return found


def _asked(callback: ViabilityCallback) -> dict[str, float]:
    """
    :param callback: that has trained a critic
    :return: what the critic says about a firing that breaks the reserve
    """
    met = callback.store.sample(2000, np.random.default_rng(0))
    fuel, tilt = met.internal.T
    # Where it is not about to tilt over, so that nothing but the tank matters.
    upright = np.abs(tilt) < 0.5
    observation, internal = met.observation[upright].copy(), met.internal[upright].copy()
    # The observation shows both variables at its end.
    observation[:, -2] = internal[:, 0] = FUEL
    critic = callback.actor
    assert isinstance(critic, ViabilityCritic)
    values: NDArray[np.float32] = critic.values(callback.spec.encode(observation, internal))[:, MAIN_ENGINE, 0]
    return {PASSES: float((values >= THRESHOLD).mean()), VALUE: float(values.mean()), SEEN: float(fuel.min())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument("--timesteps", type=int, default=1_600, help="random actions in the corridor")
    parser.add_argument("--lander-timesteps", type=int, default=6_000, help="random actions of the lander")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()
    seeds = list(range(own.seeds))
    asked = [lander(seed, own.lander_timesteps) for seed in track(seeds, "lander")]
    walked = {name: [corridor(name, seed, own.timesteps) for seed in track(seeds, name)] for name in SHIELDS}
    critics = {name: [found[name] for found in asked] for name in asked[0]}
    tables = {
        "lander": tabulate(
            f"the lander at a fuel of {FUEL}, {own.seeds} seeds: mean [95 % interval]",
            critics,
            {SEEN: ".2f", VALUE: ".3f", PASSES: ".3f"},
        ),
        "corridor": tabulate(
            f"random actions in Navigation1, {own.timesteps:,} steps, {own.seeds} seeds: mean [95 % interval]",
            walked,
            {COLLISIONS: ".1f", REFUSED: ".3f"},
        ),
    }
    size = {"seeds": own.seeds, "timesteps": own.timesteps, "lander_timesteps": own.lander_timesteps}
    for table, _ in tables.values():
        Console(width=120).print(table)
    save({**size, **{name: results for name, (_, results) in tables.items()}}, own.output / "residual.json")
