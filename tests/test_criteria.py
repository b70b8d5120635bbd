"""The criteria against closed forms and properties."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from persist_sb3.shield.criteria import CRITERIA, Criterion, cvar, passes


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 1.0])
def test_cvar_of_a_gaussian(share: float) -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, (1, 400_000)).astype(np.float32)
    normal = NormalDist()
    density = normal.pdf(normal.inv_cdf(share)) if share < 1.0 else 0.0
    assert cvar(values, share)[0] == pytest.approx(2.0 - 3.0 * density / share, abs=0.06)


def test_cvar_is_the_maximum_of_rockafellar_and_uryasevs_program() -> None:
    values = np.random.default_rng(1).normal(size=(20, 7)).astype(np.float32)
    share = 0.35  # 2.45 values: the third lowest counts in part
    # The program is concave and piecewise linear with kinks at the values: its maximum is at one of them.
    shortfall = np.maximum(values[:, :, None] - values[:, None, :], 0.0).mean(axis=2)
    np.testing.assert_allclose(cvar(values, share), (values - shortfall / share).max(axis=1), rtol=1e-5, atol=1e-6)


def test_cvar_lies_between_the_minimum_and_the_mean() -> None:
    values = np.random.default_rng(2).normal(size=(50, 10)).astype(np.float32)
    np.testing.assert_array_equal(cvar(values, 0.0), values.min(axis=1))
    np.testing.assert_allclose(cvar(values, 1.0), values.mean(axis=1), rtol=1e-5, atol=1e-6)
    levels = np.stack([cvar(values, share) for share in (0.0, 0.2, 0.5, 0.8, 1.0)])
    assert (np.diff(levels, axis=0) >= -1e-6).all()


def test_probability_counts() -> None:
    slack = np.where(np.arange(10) < np.arange(11)[:, None], 1.0, -1.0).astype(np.float32)  # 0 ... 10 of 10 safe
    for conf in (0.7, 0.8, 0.9, 0.95, 1.0):
        expected = np.arange(11) >= math.ceil(round(conf * 10, 6))
        np.testing.assert_array_equal(passes(slack, "probability", conf), expected)
    np.testing.assert_array_equal(passes(slack, "worst_case", 0.1), np.arange(11) == 10)


def test_cvar_minds_how_far_the_worst_go() -> None:
    slack = np.array([[1.0] * 8 + [-0.1] * 2, [1.0] * 8 + [-5.0] * 2], dtype=np.float32)
    assert passes(slack, "probability", 0.8).tolist() == [True, True]
    assert passes(slack, "cvar", 0.5).tolist() == [True, False]  # means of the worst 5: 0.56 and -1.4


@pytest.mark.parametrize("criterion", CRITERIA)
def test_more_slack_is_never_worse(criterion: Criterion) -> None:
    generator = np.random.default_rng(3)
    slack = generator.normal(0.5, 0.5, (300, 12)).astype(np.float32)
    better = slack + generator.random(slack.shape).astype(np.float32)
    for conf in (0.5, 0.8, 0.95):
        before, after = (passes(rows, criterion, conf) for rows in (slack, better))
        assert (after >= before).all() and after.any()
    # What is not a number is not safe.
    slack[:] = np.nan
    assert not passes(slack, criterion, 0.5).any()
