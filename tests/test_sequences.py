"""Stretches drawn from the store lie in one environment and one episode, without a gap, as brute force finds them."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.buffers import Sequences, TransitionStore


class Clock(gym.Env[Any, Any]):
    """Says which environment, which episode and which step it is; episodes have the lengths that it is told."""

    observation_space = spaces.Dict({"id": spaces.Box(-np.inf, np.inf, (3,), np.float32)})
    action_space = spaces.Discrete(10_000)

    def __init__(self, slot: int, lengths: list[int]) -> None:
        self.slot = slot
        self.lengths = lengths
        self.episode = -1

    def _see(self) -> tuple[Any, dict[str, Any]]:
        seen = np.array([self.slot, self.episode, self.time], dtype=np.float32)
        return {"id": seen}, {"internal": seen[2:]}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode += 1
        self.time = 0
        return self._see()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        observation, info = self._see()
        return observation, 0.0, False, self.time == self.lengths[self.episode % len(self.lengths)], info


class Run:
    """A store that reads environments as a callback would, and a list of all steps: ``(slot, episode, time)``."""

    def __init__(self, lengths: list[list[int]]) -> None:
        self.env = DummyVecEnv([partial(Clock, slot, each) for slot, each in enumerate(lengths)])
        self.model: Any = SimpleNamespace(get_env=lambda: self.env, num_timesteps=0)
        self.store = TransitionStore()
        self.rows: list[tuple[int, int, int]] = []
        self.reset()

    def reset(self) -> None:
        self.model._last_obs = self.env.reset()
        self.store.attach(self.model)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.rows += [tuple(row) for row in self.model._last_obs["id"].astype(int).tolist()]
            actions = np.full(self.env.num_envs, self.model.num_timesteps)
            observations, rewards, dones, infos = self.env.step(actions)
            self.model.num_timesteps += len(dones)
            self.store.read(
                {
                    "self": self.model,
                    "infos": infos,
                    "dones": dones,
                    "new_obs": observations,
                    "actions": actions,
                    "rewards": rewards,
                }
            )
            self.model._last_obs = observations


def stretches(drawn: Sequences) -> list[list[tuple[int, int, int]]]:
    ids = drawn.transitions.observation["id"].astype(int)
    return [[tuple(row) for row in each[own].tolist()] for each, own in zip(ids, drawn.valid, strict=True)]


LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 40), st.lists(st.integers(1, 25), min_size=1, max_size=3), st.integers(1, 12))
def test_stretches_are_those_of_brute_force(
    lengths: list[list[int]], capacity: int, parts: list[int], length: int
) -> None:
    run = Run(lengths)
    run.store.reserve(capacity)
    for part in parts:
        run.steps(part)
        run.reset()  # cuts the running episodes short
    run.store.reserve(capacity + 3)
    run.steps(2)
    kept = run.rows[-len(run.store) :]
    # What is kept of each episode, in order, and every window of it that is as long as it can be.
    allowed = set()
    for slot, episode, _ in kept:
        whole = [row for row in kept if row[:2] == (slot, episode)]
        span = min(length, len(whole))
        allowed |= {tuple(whole[start : start + span]) for start in range(len(whole) - span + 1)}
    drawn = run.store.sample_sequences(300, length, np.random.default_rng(0))
    assert {tuple(each) for each in stretches(drawn)} <= allowed
    assert {row for each in stretches(drawn) for row in each} <= set(kept)
    assert drawn.valid[:, 0].all()
    ids = drawn.transitions.observation["id"]
    np.testing.assert_array_equal(drawn.is_first, ids[:, 0, 2] == 0)
    following = drawn.transitions.next_observation["id"]
    np.testing.assert_array_equal(following[..., 2], ids[..., 2] + 1)  # the true successor, at an episode's end, too
    # Behind its end a stretch repeats its last row.
    last = drawn.valid.sum(axis=1) - 1
    for each, own, end in zip(ids, drawn.valid, last, strict=True):
        np.testing.assert_array_equal(each[~own], np.broadcast_to(each[end], each[~own].shape))
    assert not (drawn.transitions.done & drawn.valid)[:, :-1][drawn.valid[:, 1:]].any()


def test_all_columns_keep_together_and_draws_are_seeded() -> None:
    run = Run([[5, 8], [11]])
    run.store.reserve(30)
    run.steps(40)
    drawn = run.store.sample_sequences(20, 6, np.random.default_rng(3))
    transitions = drawn.transitions
    assert len(drawn.valid) == len(transitions) == 20
    assert transitions.internal.shape == (20, 6, 1)
    np.testing.assert_array_equal(transitions.internal[..., 0], transitions.observation["id"][..., 2])
    steps = np.diff(transitions.action, axis=1)[drawn.valid[:, 1:]]
    np.testing.assert_array_equal(steps, 2)  # the action is the timestep, and a step of both environments makes two
    again = run.store.sample_sequences(20, 6, np.random.default_rng(3))
    assert stretches(again) == stretches(drawn)


def test_ends_and_beginnings_are_not_drawn_less_often_than_brute_force_says() -> None:
    run = Run([[10]])
    run.store.reserve(1000)
    run.steps(1000)
    drawn = run.store.sample_sequences(4000, 4, np.random.default_rng(0))
    assert drawn.valid.all()  # an episode of 10 steps has room for 4
    times = drawn.transitions.observation["id"][..., 2].astype(int).reshape(-1)
    expected = np.zeros(10)
    for row in range(10):
        for offset in range(4):  # a window about the row, moved into the episode
            start = min(max(row - offset, 0), 10 - 4)
            expected[start : start + 4] += 1
    np.testing.assert_allclose(np.bincount(times, minlength=10) / len(times), expected / expected.sum(), atol=0.01)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"no transition is kept: call reserve\(capacity\) first"):
        TransitionStore().sample_sequences(1, 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        TransitionStore().sample_sequences(1, 0, np.random.default_rng(0))
