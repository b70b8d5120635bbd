"""Demonstrations for GridLife with real-valued actions, by an agent that learned to choose among its five moves."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from persist_sb3.envs.dynamics import MOVES
from persist_sb3.runs import Run

#: The larger component of what moves the agent, in absolute value, and how much of it the other one may be. Half a unit
#: is the least that moves it.
LARGER, OTHER = (0.6, 0.97), 0.6
#: The greatest absolute value of either component where the agent is to stay.
STILL = 0.4


def as_numbers(moves: NDArray[np.intp], generator: np.random.Generator) -> NDArray[np.float32]:
    """
    Of the real-valued actions that mean a move, draw one: a demonstrator that always gave the same would show that
    every other one is wrong.

    :param moves: GridLife's Discrete actions, ``(n,)``
    :param generator: of chance
    :return: ``(n, 2)``
    """
    direction, n = np.array(MOVES)[moves], len(moves)
    larger = generator.uniform(*LARGER, (n, 1))
    across = generator.uniform(-OTHER, OTHER, (n, 1)) * larger * (direction == 0)
    still = generator.uniform(-STILL, STILL, (n, 2))
    return np.where(direction.any(axis=1, keepdims=True), direction * larger + across, still).astype(np.float32)


class Mover:
    """
    Has the ``predict`` of SB3's models, and makes the moves of another agent.

    :param run: of an agent with Discrete actions
    :param seed: of its draws
    """

    def __init__(self, run: Run, seed: int) -> None:
        venv = run.make_env(1, split="train")
        self._model = run.load_model(venv, seed=seed)
        self._normalizer = unwrap_vec_normalize(venv)
        self._generator = np.random.default_rng(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float32], Any]:
        """
        :param observation: as the other agent would have it, and not normalised, ``(n, ...)``
        :param state: of a recurrent policy, which this is none of
        :param episode_start: likewise
        :param deterministic: take the likeliest move
        :return: real-valued actions, ``(n, 2)``, and ``state``
        """
        if self._normalizer is not None:
            observation = self._normalizer.normalize_obs(observation)
        moves, _ = self._model.predict(observation, deterministic=deterministic)
        return as_numbers(moves, self._generator), state
