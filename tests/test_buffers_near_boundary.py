"""The near-boundary buffer finds, at every moment, exactly what a search of the whole store would find."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.buffers import NearBoundaryBuffer, Transitions, TransitionStore, concatenate
from persist_sb3.callbacks import PersistCallback
from persist_sb3.viability import ViabilitySet
from tests.toys import Walker

VIABILITY = ViabilitySet(["battery >= 0.2", "heat in [0.3, 0.7]"], ["battery", "heat"], mu=[0.7, 0.5])


class Watch(PersistCallback):
    """
    Keeps everything, and compares with a search of it every now and then.

    :param check: called with the last 300 transitions and the buffer
    """

    def __init__(
        self, check: Callable[[Transitions, NearBoundaryBuffer], None], grow_at: int = 0, **kwargs: Any
    ) -> None:
        super().__init__()
        self.check = check
        self.grow_at = grow_at
        self.kwargs = kwargs
        self.steps: list[Transitions] = []

    def _on_training_start(self) -> None:
        self.store.reserve(50)
        self.near = NearBoundaryBuffer(self.store, VIABILITY, **self.kwargs)
        super()._on_training_start()

    def _on_step(self) -> bool:
        self.steps.append(self.store.read(self.locals))
        self.near.add(self.steps[-1])
        if len(self.steps) == self.grow_at:
            self.store.reserve(170)
        if len(self.steps) % 20 == 0:
            self.check(concatenate(self.steps[-100:]), self.near)
        return super()._on_step()


def learn(watch: Watch, steps: int = 600) -> Watch:
    env = DummyVecEnv([Walker] * 3)
    PPO("MlpPolicy", env, n_steps=20, batch_size=60, n_epochs=1, seed=0, device="cpu").learn(steps, callback=watch)
    return watch


def margin(x: np.ndarray) -> np.ndarray:
    """The smallest scaled margin, by hand: 0.5 and 0.2 are the margins at the setpoint."""
    battery, heat = x.T
    return np.min([(battery - 0.2) / 0.5, (heat - 0.3) / 0.2, (0.7 - heat) / 0.2], axis=0)


def near_rows(everything: Transitions, capacity: int, eps: float) -> np.ndarray:
    before, after = margin(everything.internal), margin(everything.next_internal)
    near = ((before >= 0) & (before < eps)) | ((after >= 0) & (after < eps))
    return np.flatnonzero(near & (np.arange(len(near)) >= len(near) - capacity))


@pytest.mark.parametrize("grow_at", [0, 90])
def test_it_remembers_what_the_store_still_has(grow_at: int) -> None:
    seen = []

    def check(everything: Transitions, near: NearBoundaryBuffer) -> None:
        rows = near_rows(everything, len(near.store), 0.15)
        assert len(near) == len(rows)
        if len(rows):
            batch = near.sample(400, np.random.default_rng(0))
            assert set(batch.next_internal[:, 1]) == set(everything.next_internal[rows, 1])
            frequencies = np.unique(batch.next_internal[:, 1], return_counts=True)[1] / 400
            assert np.abs(frequencies - 1 / len(rows)).max() < 5 * np.sqrt(1 / len(rows) / 400)
        seen.append(len(rows))

    learn(Watch(check, grow_at, eps=0.15, share=1.0))
    assert len(seen) == 10
    assert max(seen) > 5


def test_the_share_is_kept() -> None:
    def check(everything: Transitions, near: NearBoundaryBuffer) -> None:
        close = set(everything.next_internal[near_rows(everything, len(near.store), 0.15), 1])
        last = set(everything.next_internal[-len(near.store) :, 1])
        batch = near.sample(200, np.random.default_rng(0)).next_internal[:, 1]
        assert len(batch) == 200
        if close:
            assert set(batch[:50]) <= close
        assert set(batch[50:]) <= last
        assert not set(batch[50:]) <= close

    learn(Watch(check, eps=0.15, share=0.25))


def test_without_a_share_it_samples_as_the_store_does() -> None:
    def check(everything: Transitions, near: NearBoundaryBuffer) -> None:
        one, other = (source.sample(64, np.random.default_rng(3)) for source in (near, near.store))
        np.testing.assert_array_equal(one.next_internal, other.next_internal)

    learn(Watch(check))


def test_the_most_disputed_are_remembered() -> None:
    noise = np.random.default_rng(0)
    level: dict[Any, Any] = {}

    def disagreement(transitions: Transitions) -> np.ndarray:
        drawn = noise.uniform(size=len(transitions))
        level.update(zip(transitions.next_internal[:, 1].tolist(), drawn.tolist(), strict=True))
        return drawn

    def check(everything: Transitions, near: NearBoundaryBuffer) -> None:
        if near.store.written > 2500:
            kept = np.array([level[x] for x in everything.next_internal[-len(near.store) :, 1].tolist()])
            drawn = {level[x] for x in near.sample(500, np.random.default_rng(0)).next_internal[:, 1].tolist()}
            # The quantile of 2000 uniform numbers has a standard deviation of 0.005.
            assert set(kept[kept > 0.975]) <= drawn <= set(kept[kept > 0.925])

    learn(Watch(check, grow_at=1, eps=1e-12, share=1.0, disagreement=disagreement), 3600)


def test_dead_states_are_not_near() -> None:
    near = NearBoundaryBuffer(TransitionStore(), VIABILITY, eps=0.1)
    x = np.array([[0.2, 0.5], [0.199, 0.5], [0.249, 0.5], [0.251, 0.5], [0.7, np.nan]])
    far = np.tile([0.7, 0.5], (5, 1))
    columns = {"internal": x, "next_internal": far}
    nothing = dict.fromkeys(
        ("observation", "next_observation", "action", "executed_action", "cost", "terminated", "truncated", "done")
    )
    rows = Transitions(reward=np.zeros(5), terms={}, **columns, **nothing)  # type: ignore[arg-type]
    np.testing.assert_array_equal(near.is_near(rows), [True, False, True, False, False])
    rows.internal, rows.next_internal = far, x
    np.testing.assert_array_equal(near.is_near(rows), [True, False, True, False, False])


def test_bad_parameters_are_named() -> None:
    for name, value in (("eps", 0.0), ("share", 1.1), ("quantile", 1.0)):
        with pytest.raises(ValueError, match=f"{name}={value} must be"):
            NearBoundaryBuffer(TransitionStore(), VIABILITY, **{name: value})  # type: ignore[arg-type]
