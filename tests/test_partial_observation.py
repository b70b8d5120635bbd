"""PartialObservation: what is hidden, late, noisy or missing, and what stays true."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from persist_sb3.wrappers import InternalState, PartialObservation
from tests.toys import Scripted, Walker

LIMITS = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.01"], "low": [0.0, 0.0], "high": [1.0, 1.0]}
RAMP = np.stack([np.linspace(0.0, 1.0, 41), np.linspace(1.0, 0.0, 41)], axis=1)


def seen(steps: int = 40, seed: int = 0, **kwargs: Any) -> np.ndarray:
    env = InternalState(Scripted(RAMP), **LIMITS, append=True)
    wrapped = PartialObservation(env, **kwargs)
    observation, info = wrapped.reset(seed=seed)
    rows = [observation]
    for t in range(steps):
        observation, _, _, _, info = wrapped.step(0)
        np.testing.assert_allclose(info["internal"], RAMP[t + 1], atol=1e-6)
        rows.append(observation)
    assert (np.stack(rows)[:, :2] == RAMP.astype(np.float32)[: steps + 1]).all()
    return np.stack(rows)[:, 2:]


def test_hidden_variables_read_zero() -> None:
    shown = seen(hide=["battery"])
    assert (shown[:, 0] == 0.0).all()
    np.testing.assert_allclose(shown[:, 1], RAMP[:, 1], atol=1e-6)


def test_delay_shows_the_past_and_the_start_before_that() -> None:
    shown = seen(delay={"battery": 3})
    np.testing.assert_allclose(shown[:, 0], np.r_[[RAMP[0, 0]] * 3, RAMP[:-3, 0]], atol=1e-6)
    np.testing.assert_allclose(shown[:, 1], RAMP[:, 1], atol=1e-6)


def test_noise_has_the_stated_deviation_and_stays_in_the_space() -> None:
    errors = np.concatenate([(seen(seed=s, noise=0.05) - RAMP)[10:30] for s in range(40)])
    assert errors.std() == pytest.approx(0.05, rel=0.1)
    assert abs(errors.mean()) < 0.005
    loud = seen(noise=3.0)
    assert (loud >= 0.0).all() and (loud <= 1.0).all()


@pytest.mark.parametrize("fill", ["zero", "last"])
def test_dropout_has_the_stated_rate(fill: str) -> None:
    shown = np.stack([seen(seed=s, dropout={"battery": 0.3}, fill=fill)[:, 0] for s in range(40)])
    missing = np.abs(shown - RAMP[:, 0])[:, 1:] > 1e-6
    assert missing.mean() == pytest.approx(0.3, abs=0.03)
    if fill == "zero":
        assert (shown[:, 1:][missing] == 0.0).all()
    else:
        previous = shown[:, :-1]
        np.testing.assert_allclose(shown[:, 1:][missing], previous[missing], atol=1e-6)


def test_the_seed_decides_the_noise() -> None:
    np.testing.assert_array_equal(seen(seed=1, noise=0.1), seen(seed=1, noise=0.1))
    assert not np.array_equal(seen(seed=1, noise=0.1), seen(seed=2, noise=0.1))


def test_gridlife_hides_what_its_window_shows() -> None:
    env = PartialObservation(InternalState(gym.make("GridLife-v0")), hide=["energy"])
    observation, info = env.reset(seed=0)
    assert observation["internal"][0] == 0.0
    np.testing.assert_allclose(observation["internal"][1:], info["internal"][1:], rtol=1e-6)
    assert info["internal"][0] > 0.5


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"hide": ["batery"]}, RuntimeError, "did you mean 'battery'"),
        ({"noise": {"fuel": 0.1}}, RuntimeError, "'fuel' is no internal variable"),
        ({"noise": -0.1}, ValueError, "noise=-0.1"),
        ({"noise": float("nan")}, ValueError, "noise=nan"),
        ({"delay": 1.5}, ValueError, "delay=1.5"),
        ({"delay": -1}, ValueError, "delay=-1"),
        ({"dropout": 1.5}, ValueError, "dropout=1.5"),
        ({"fill": "mean"}, ValueError, "fill='mean'"),
    ],
)
def test_wrong_parameters_are_refused_at_construction(kwargs: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        PartialObservation(InternalState(Walker(), **LIMITS, append=True), **kwargs)


def test_a_variable_that_is_not_shown_cannot_be_hidden() -> None:
    with pytest.raises(RuntimeError, match=r"does not show 'battery'.*append=True"):
        PartialObservation(InternalState(Walker(), **LIMITS), hide=["battery"])
