"""Plays an environment, and keeps every number that it shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.diagnosis.numbers import numbers_of
from persist_sb3.metrics import EpisodeRecord
from persist_sb3.viability import ViabilitySet

Floats = NDArray[np.float64]
#: Chooses an action at a step, the first being 0.
Chooser = Callable[[int], Any]


class NumberRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """
    Keeps every number that the environment shows, before a layer adds to it. It lies innermost.

    :param env: an environment
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        #: Of the episode in progress, one an observation.
        self.seen: list[dict[str, float]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self.seen = [numbers_of(observation, info)]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.seen.append(numbers_of(observation, info))
        return observation, reward, terminated, truncated, info


@dataclass(frozen=True)
class Play:
    """
    An episode of ``T`` steps.

    :param numbers: of the observation and the info at reset and after each step, ``T + 1`` of them, by path
    :param internal: the internal variables at the same moments, ``(T + 1, d)``; None if nothing says what they are
    :param reward: the task reward, ``(T,)``
    :param terminated: it ended by itself
    :param truncated: it was cut off by its time limit
    """

    numbers: list[dict[str, float]]
    internal: Floats | None
    reward: Floats
    terminated: bool
    truncated: bool

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.reward)

    @property
    def ended(self) -> bool:
        """It ended, and was not merely watched for long enough."""
        return self.terminated or self.truncated

    def violated_at(self, viability: ViabilitySet) -> int | None:
        """
        :param viability: the constraints
        :return: the first step, from 1, after which one of them is violated; None if there is none
        """
        assert self.internal is not None
        broken = np.flatnonzero(~viability.contains(self.internal[1:]))
        return int(broken[0]) + 1 if len(broken) else None

    def record(self, viability: ViabilitySet | None) -> EpisodeRecord:
        """
        :param viability: the constraints. Default: an episode is lost where it terminates
        :return: what survival curves are drawn of
        """
        lost = (self.length if self.terminated else None) if viability is None else self.violated_at(viability)
        margins = None if viability is None or self.internal is None else viability.margins(self.internal[1:])
        which = None
        if lost is not None and viability is not None and self.internal is not None:
            which = viability.names[int(viability.violated(self.internal[lost : lost + 1])[0])]
        return EpisodeRecord(
            length=self.length,
            terminated=self.terminated,
            truncated=self.truncated,
            violated=which,
            violated_at=lost,
            violations=0 if margins is None else int((margins.min(axis=1) < 0.0).sum()),
            min_margin=np.nan if margins is None else float(margins.min()),
            satisfaction={},
            near_steps=0,
            recovered_steps=0,
            task_return=float(self.reward.sum()),
            shaped_return=float(self.reward.sum()),
        )


def play(env: gym.Env[Any, Any], choose: Chooser, seed: int, most: int) -> Play:
    """
    :param env: has a :class:`NumberRecorder` innermost, and perhaps ``InternalState`` around it
    :param choose: the policy
    :param seed: of the reset
    :param most: steps after which watching stops
    :return: the episode
    """
    has_internal = env.has_wrapper_attr("viability")
    _, info = env.reset(seed=seed)
    internal = [info.get("internal")]
    rewards: list[float] = []
    terminated = truncated = False
    while not (terminated or truncated) and len(rewards) < most:
        _, reward, terminated, truncated, info = env.step(choose(len(rewards)))
        rewards.append(float(reward))
        internal.append(info.get("internal"))
    x = np.array([np.array(row, dtype=np.float64) for row in internal]) if has_internal else None
    return Play(list(env.get_wrapper_attr("seen")), x, np.array(rewards), bool(terminated), bool(truncated))


def play_randomly(
    env: gym.Env[Any, Any],
    episodes: int,
    seed: int,
    most: int,
    progress: Callable[[int], object] | None = None,
) -> list[Play]:
    """
    :param env: as :func:`play` takes it
    :param episodes: how many
    :param seed: the i-th episode is reset with ``seed + i``
    :param most: steps of an episode after which watching stops
    :param progress: called with the number of episodes that are done
    :return: the episodes, under uniformly random actions
    """
    plays = []
    env.action_space.seed(seed)
    for episode in range(episodes):
        plays.append(play(env, lambda _: env.action_space.sample(), seed + episode, most))
        if progress is not None:
            progress(episode + 1)
    return plays


def constant_actions(space: spaces.Space[Any], most: int = 6) -> dict[str, Any]:
    """
    :param space: of the actions
    :param most: how many Discrete ones
    :return: actions that can be taken for ever, by what they are called; none in an unusual space
    """
    if isinstance(space, spaces.Discrete):
        return {f"always {a}": a for a in range(int(space.start), int(space.start) + min(int(space.n), most))}
    if isinstance(space, spaces.Box):
        low = np.where(np.isfinite(space.low), space.low, -1.0).astype(space.dtype)
        high = np.where(np.isfinite(space.high), space.high, 1.0).astype(space.dtype)
        middle = ((low + high) / 2).astype(space.dtype)
        return {"always the least": low, "always the middle": middle, "always the greatest": high}
    if isinstance(space, spaces.MultiDiscrete):
        return {"always the first": space.start.copy(), "always the last": space.start + space.nvec - 1}
    return {}


def series(plays: Sequence[Play], path: str) -> Floats:
    """
    :param plays: episodes
    :param path: of a number
    :return: its values in all of them, NaN where it was absent
    """
    return np.array([moment.get(path, np.nan) for one in plays for moment in one.numbers])
