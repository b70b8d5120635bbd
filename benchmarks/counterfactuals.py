"""
Where a step would have led with other internal variables: what replay buffers say, against GridLife itself.

An agent walks through GridLife with real-valued actions and a map of what it saw: to the scent of food where it is
hungry, and anywhere else. After so many steps its world is set back by one, internal variables are drawn anew, and the
same action is taken again, with the same chance: that is the truth. It is held against three guesses: that the change
would have been the same; and what a linear regression says of it, by least squares, or by least absolute deviations as
in `Counterfactuals`, which `CounterfactualReplayBuffer` uses. Errors are root mean squares over 20,000 steps, and
"wrong deaths" the share of steps after which an agent is taken for dead that lives, or for alive that does not::

    python -m benchmarks.counterfactuals
    python -m benchmarks.counterfactuals --seeds 1 --steps 4000    # a quick look
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.kept import save
from persist_sb3.batch import take
from persist_sb3.buffers import Transitions, concatenate
from persist_sb3.buffers.transitions import as_batch
from persist_sb3.counterfactuals import ROUNDS, ROWS, Counterfactuals
from persist_sb3.envs.snapshot import Snapshot
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.models.spec import StateSpec
from persist_sb3.recording import play
from persist_sb3.wrappers import VecInternalState, VecSpatialMemory
from persist_sb3.wrappers.adapters import lookup

ENVS = 16
#: Steps that are judged.
JUDGED = 20_000
STEPS = (2_000, 8_000, 32_000)
#: Energy below which the agent follows the scent, and how often it turns elsewhere.
HUNGRY, TURNS = 0.6, 0.3
#: Weighted least squares, one after the other; none is no regression.
GUESSES = {"the same change": 0, "least squares": 1, "least absolute deviations": ROUNDS}
WRONG, DEATHS = "wrong deaths", "deaths"

Figures = dict[str, dict[str, float]]


class Hungry:
    """
    Has the ``predict`` of SB3's models.

    :param seed: of where it goes when it is not hungry
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._heading = np.zeros((ENVS, 2), dtype=np.float32)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float32], Any]:
        """
        :param observation: of GridLife, ``(n, ...)``
        :param state: of a recurrent policy, which this is none of
        :param episode_start: likewise
        :param deterministic: makes no difference
        :return: real-valued actions, ``(n, 2)``, and ``state``
        """
        turns = self._generator.random((ENVS, 1)) < TURNS
        anywhere = self._generator.uniform(-1.0, 1.0, (ENVS, 2))
        self._heading = np.where(turns, anywhere, self._heading).astype(np.float32)
        scent = observation["scent"]
        food = scent / np.maximum(np.abs(scent).max(axis=1, keepdims=True), 1e-6)
        return np.where(observation["internal"][:, :1] < HUNGRY, food, self._heading).astype(np.float32), state


def measure(seed: int, steps: int) -> Figures:
    """
    :param seed: of the walk
    :param steps: to learn from
    :return: the figures of each guess
    """
    world = GridLifeVecEnv(ENVS, split="train", continuous=True, scent=True)
    env: VecEnv = VecInternalState(VecSpatialMemory(world))
    viability, entries = lookup(env, "viability"), lookup(env, "internal_entries")
    spec = StateSpec(env.observation_space, env.action_space, viability)
    guesses = {name: Counterfactuals(spec, entries) for name in GUESSES}
    generator = np.random.default_rng(seed)
    walk: list[Transitions] = []
    errors: dict[str, list[NDArray[np.float64]]] = {name: [] for name in GUESSES}
    truths: list[NDArray[np.float64]] = []
    before: Snapshot | None = None
    for count, step in enumerate(play(Hungry(seed), env, seed=seed), start=1):
        if before is not None and count * ENVS > steps:
            if not truths:
                learn(guesses, concatenate(walk), generator)
            x = step.internal
            other = guesses["the same change"].redraw(x, generator.random((2, *x.shape)))
            now = world.snapshot()
            world.restore(replace(before, internal=other))
            truth = np.array([info["internal"] for info in world.step(step.executed_action)[3]])
            world.restore(now)
            truths.append(truth)
            for name, guess in guesses.items():
                errors[name].append(guess.successor(x, step.next_internal, other) - truth)
            if len(truths) * ENVS >= JUDGED:
                break
        else:
            walk.append(step)
        before = world.snapshot()
    truth = np.concatenate(truths)
    dead = ~viability.contains(truth)
    found = {}
    for name in GUESSES:
        error = np.concatenate(errors[name])
        found[name] = dict(zip(viability.dims, np.sqrt(np.square(error).mean(axis=0)).tolist(), strict=True))
        wrong = ~viability.contains(truth + error) != dead
        found[name] |= {WRONG: float(wrong.mean()), DEATHS: float(dead.mean())}
    return found


def learn(guesses: dict[str, Counterfactuals], walk: Transitions, generator: np.random.Generator) -> None:
    """
    :param guesses: by name
    :param walk: to learn from
    :param generator: decides from which of its steps, as many as a buffer takes
    """
    some = Transitions(**take(as_batch(walk), generator.choice(len(walk), min(len(walk), ROWS), replace=False)))
    for name, rounds in GUESSES.items():
        if rounds:
            action = guesses[name].spec.encode_action(some.executed_action)
            guesses[name].learn(some.observation, action, some.next_observation, seen=len(walk), rounds=rounds)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="walks")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, metavar="N", help="steps to learn from")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    own = parser.parse_args()
    work = [(steps, seed) for steps in own.steps for seed in range(own.seeds)]
    found: dict[str, list[Figures]] = {str(steps): [] for steps in own.steps}
    for steps, seed in track(work, "walking and judging"):
        found[str(steps)].append(measure(seed, steps))
    save(found, own.output / "counterfactuals.json")
    names = list(found[str(own.steps[0])][0]["the same change"])
    table = Table("steps", "guess", *names, title=f"mean (range) of {own.seeds} walks")
    for steps, walks in found.items():
        for guess in GUESSES:
            cells = [[walk[guess][name] for walk in walks] for name in names]
            table.add_row(steps, guess, *(f"{np.mean(c):.2g} ({min(c):.2g} to {max(c):.2g})" for c in cells))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
