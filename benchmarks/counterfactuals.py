"""
Where a step would have led with other internal variables: what replay buffers say, against GridLife itself.

An untrained agent walks through `GridLifeContinuousScent-v0` with a map of what it saw. After so many steps its world
is set back by one, internal variables are drawn anew, and the same action is taken again, with the same chance: that
is the truth. It is held against three guesses: that the change would have been the same ("the same change"); a linear
regression of the change (`Counterfactuals`, what `CounterfactualReplayBuffer` uses); and what an ensemble of networks,
`InternalModel`, says of both, added to what happened. Errors are root mean squares over 40,000 steps of either, and
"wrong deaths" the share of steps after which an agent is taken for dead that lives, or for alive that does not::

    python -m benchmarks.counterfactuals
    python -m benchmarks.counterfactuals --seeds 1 --steps 4000    # a quick look
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.kept import save
from persist_sb3.callbacks import InternalModelCallback
from persist_sb3.counterfactuals import Counterfactuals
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.wrappers import VecInternalState, VecSpatialMemory

ENVS = 8
#: Steps that are judged, from each number of steps on.
JUDGED = 40_000
STEPS = (4_000, 16_000, 64_000)
GUESSES = ("the same change", "regression", "ensemble")
WRONG, DEATHS = "wrong deaths", "deaths"

Figures = dict[str, dict[str, float]]


class Judge(InternalModelCallback):
    """
    Trains the ensemble and the regression on the first steps, and judges both on those that follow.

    :param world: in which the agent acts
    :param steps: to learn from
    """

    def __init__(self, world: GridLifeVecEnv, steps: int) -> None:
        super().__init__(learning_starts=500)
        self.world, self.steps = world, steps
        self.errors: dict[str, list[NDArray[np.float64]]] = {name: [] for name in GUESSES}
        self.wrong: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in GUESSES}
        self.deaths: list[NDArray[np.bool_]] = []

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.worlds = Counterfactuals(self.spec, self.lookup("internal_entries"))
        self.before = self.world.snapshot()

    def _on_step(self) -> bool:
        step = self.store.read(self.locals)
        action = self.spec.encode_action(step.executed_action)
        if self.num_timesteps <= self.steps:
            super()._on_step()
            self.worlds.learn(step.observation, action, step.next_observation)
        else:
            self._judge(step.observation, action, step.internal, step.next_internal)
        self.before = self.world.snapshot()
        return True

    def _judge(
        self,
        observation: Any,
        action: NDArray[np.float32],
        x: NDArray[np.float64],
        x_next: NDArray[np.float64],
    ) -> None:
        viability, generator = self.spec.viability, self.generator
        other = self.worlds.redraw(x, generator.random((2, *x.shape)))
        now = self.world.snapshot()
        self.world.restore(replace(self.before, internal=other))
        truth = np.array([info["internal"] for info in self.world.step(self.spec.decode_action(action))[3]])
        self.world.restore(now)
        members = generator.integers(self.actor.members, size=len(x))
        was, would = (
            self.actor.moments(self.spec.encode(shown, internal), action, members)[0]
            for shown, internal in ((observation, x), (self.worlds.write(observation, other), other))
        )
        guesses = (other + x_next - x, self.worlds.successor(x, x_next, other), x_next + would - was)
        dead = ~viability.contains(truth)
        self.deaths.append(dead)
        for name, guess in zip(GUESSES, guesses, strict=True):
            guess = np.clip(guess, viability.low, viability.high)
            self.errors[name].append(guess - truth)
            self.wrong[name].append(~viability.contains(guess) != dead)

    def figures(self) -> Figures:
        """
        :return: of each guess the error of each variable, wrong deaths, and how many deaths there are
        """
        found = {}
        for name in GUESSES:
            errors = np.sqrt(np.square(np.concatenate(self.errors[name])).mean(axis=0)).tolist()
            found[name] = dict(zip(self.spec.viability.dims, errors, strict=True))
            found[name] |= {WRONG: float(np.mean(self.wrong[name])), DEATHS: float(np.mean(self.deaths))}
        return found


def measure(seed: int, steps: int) -> Figures:
    """
    :param seed: of the walk
    :param steps: to learn from
    :return: the figures
    """
    world = GridLifeVecEnv(ENVS, split="train", continuous=True, scent=True)
    world.seed(seed)
    env: VecEnv = VecInternalState(VecSpatialMemory(world))
    # It never gets to an update of its own.
    agent = PPO("MultiInputPolicy", env, n_steps=(steps + JUDGED) // ENVS, n_epochs=1, learning_rate=0.0, seed=seed)
    judge = Judge(world, steps)
    agent.learn(steps + JUDGED, callback=judge)
    return judge.figures()


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="walks")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, metavar="N", help="steps to learn from")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()
    torch.set_num_threads(1)
    work = [(steps, seed) for steps in own.steps for seed in range(own.seeds)]
    found: dict[str, list[Figures]] = {str(steps): [] for steps in own.steps}
    for steps, seed in track(work, "walking and judging"):
        found[str(steps)].append(measure(seed, steps))
    save(found, own.output / "counterfactuals.json")
    names = list(found[str(own.steps[0])][0][GUESSES[0]])
    table = Table("steps", "guess", *names, title=f"mean (range) of {own.seeds} walks")
    for steps, walks in found.items():
        for guess in GUESSES:
            cells = [[walk[guess][name] for walk in walks] for name in names]
            table.add_row(steps, guess, *(f"{np.mean(c):.2g} ({min(c):.2g} to {max(c):.2g})" for c in cells))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
