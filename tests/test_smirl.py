"""SMiRL: the log-density of an observation among those of its episode, and what is shown of it."""

import math
from functools import partial
from statistics import NormalDist, fmean, pvariance
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.intrinsic import EpisodeDensity
from persist_sb3.wrappers import (
    InternalState,
    NonFiniteError,
    SMiRLBonus,
    VecInternalState,
    VecSMiRLBonus,
    VectorInternalState,
    VectorSMiRLBonus,
)
from tests.test_rnd import LIMITS, Camera
from tests.toys import Scripted, Walker

ROWS = [[0.0, 1.0], [2.0, 1.5], [-1.0, 7.0], [0.5, 1.0]]


def expected(past: list[list[float]], observation: list[float], prior_std: float, prior_count: float) -> float:
    """The same by the standard library, one entry at a time."""
    total = 0.0
    for column, value in zip(zip(*past, strict=True), observation, strict=True):
        n = len(past)
        variance = (n * pvariance(column) + prior_count * prior_std**2) / (n + prior_count)
        total += math.log(NormalDist(fmean(column), variance**0.5).pdf(value))
    return total / len(observation)


@pytest.mark.parametrize(("prior_std", "prior_count"), [(1.0, 1.0), (0.3, 2.0)])
def test_log_density_against_the_standard_library(prior_std: float, prior_count: float) -> None:
    bonus = SMiRLBonus(
        InternalState(Scripted(ROWS), **LIMITS), weight=2.0, prior_std=prior_std, prior_count=prior_count
    )
    for _ in range(2):  # the second episode knows nothing of the first
        bonus.reset()
        for t in range(1, len(ROWS)):
            _, reward, _, _, info = bonus.step(0)
            assert reward == pytest.approx(2.0 * expected(ROWS[:t], ROWS[t], prior_std, prior_count), rel=1e-5)
            assert info["reward_terms"]["intrinsic"] == pytest.approx(reward)


def test_the_density_integrates_to_one() -> None:
    density = EpisodeDensity(1, 1)
    density.begin(np.array([0]), np.array([[1.0]]))
    for value in (2.0, 4.0, -1.0):
        density.update(np.array([[value]]))
    grid = np.linspace(-40.0, 40.0, 20_001)
    values = np.exp([density.log_density(np.array([[x]]))[0] for x in grid])
    assert values.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-6)


def test_statistics_are_shown_at_the_end_of_a_box() -> None:
    env = SMiRLBonus(InternalState(Scripted(ROWS), **LIMITS))
    first, _ = env.reset()
    np.testing.assert_allclose(first, [0.0, 1.0, 0.0, 1.0, 0.5**0.5, 0.5**0.5, 1 / 101], rtol=1e-6)
    for _ in range(2):
        last = env.step(0)[0]
    # Squares about the mean of (0, 2, -1) and (1, 1.5, 7), with one more observation's worth of variance 1.
    deviations = [((5 - 1 / 3 + 1) / 4) ** 0.5, ((52.25 - 9.5**2 / 3 + 1) / 4) ** 0.5]
    np.testing.assert_allclose(last, [-1.0, 7.0, 1 / 3, 9.5 / 3, *deviations, 3 / 103], rtol=1e-5)
    assert env.observation_space.contains(last)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_three_forms_agree(mode: AutoresetMode) -> None:
    single = SMiRLBonus(InternalState(Walker(), **LIMITS))
    vec = VecSMiRLBonus(VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS))
    vector = VectorSMiRLBonus(VectorInternalState(SyncVectorEnv([Walker] * 2, autoreset_mode=mode), **LIMITS))
    vec.seed(7)
    shown: list[Any] = [single.reset(seed=7)[0], vec.reset(), vector.reset(seed=7)[0]]
    np.testing.assert_array_equal(shown[0], shown[1][0])
    np.testing.assert_array_equal(shown[1], shown[2])
    ended = False
    while not ended:
        observation, reward, terminated, truncated, _ = single.step(1)
        ended = terminated or truncated
        _, rewards, dones, infos = vec.step(np.array([1, 1]))
        others, others_rewards, *_, vector_infos = vector.step(np.array([1, 1]))
        assert np.float32(reward) == rewards[0] == np.float32(others_rewards[0])
        if not ended:
            np.testing.assert_array_equal(observation, others[0])
    assert dones[0]
    np.testing.assert_array_equal(observation, infos[0]["terminal_observation"])
    if mode is AutoresetMode.SAME_STEP:
        np.testing.assert_array_equal(observation, vector_infos["final_obs"][0])


@pytest.mark.parametrize("kind", ["box", "dict", "discrete"])
def test_with_every_observation(kind: str) -> None:
    env = VecSMiRLBonus(VecInternalState(DummyVecEnv([partial(Walker, kind)] * 2), **LIMITS), weight=0.1)
    if kind == "dict":
        assert isinstance(env.observation_space, spaces.Dict)
        assert env.observation_space["surprise"].shape == (2 * 7 + 1,)
    model = PPO("MultiInputPolicy" if kind == "dict" else "MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1)
    model.learn(64)


def test_staying_where_one_was_is_worth_more_the_longer_it_lasts() -> None:
    env = SMiRLBonus(InternalState(Scripted([[0.3, 0.3]] * 20), **LIMITS))
    env.reset()
    rewards = [env.step(0)[1] for _ in range(19)]
    assert (np.diff(rewards) > 0.0).all()
    # Nothing but the prior's variance is left, which n observations and it share.
    np.testing.assert_allclose(rewards, [-0.5 * math.log(2 * math.pi / (n + 1)) for n in range(1, 20)])


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="prior_std=0"):
        SMiRLBonus(InternalState(Walker(), **LIMITS), prior_std=0.0)
    with pytest.raises(ValueError, match="prior_count=-1"):
        SMiRLBonus(InternalState(Walker(), **LIMITS), prior_count=-1.0)
    with pytest.raises(TypeError, match="image"):
        SMiRLBonus(InternalState(Camera(), **LIMITS))
    with pytest.raises(RuntimeError, match="already"):
        SMiRLBonus(SMiRLBonus(InternalState(Walker("dict"), **LIMITS)))
    rows = np.array(ROWS)
    rows[2] = np.nan
    script = Scripted(rows, [{"internal": np.array([0.5, 0.5])}] * 4)
    env = SMiRLBonus(InternalState(script, **LIMITS, check_finite=False))
    env.reset()
    env.step(0)
    with pytest.raises(NonFiniteError, match="environment 0 is nan at step 2"):
        env.step(0)
