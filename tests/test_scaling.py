"""ForwardScale against sums and deviations worked out by hand, and schedules."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.utils import LinearSchedule

from persist_sb3.intrinsic import BonusUnit, ForwardScale
from persist_sb3.schedules import make_period, make_schedule


def scale_of(rewards: list[list[float]], gamma: float) -> ForwardScale:
    scale = ForwardScale(gamma)
    for row in rewards:
        scale.update(np.array(row))
    return scale


@pytest.mark.parametrize(
    ("rewards", "gamma", "sums", "variance"),
    [
        # 1, 2.5, 4.25: mean 31/12, mean square 25.3125/3
        ([[1.0], [2.0], [3.0]], 0.5, [4.25], 25.3125 / 3 - (31 / 12) ** 2),
        # (1, 3), (2.99, 2.97): deviations from their mean 2.49 are -1.49, 0.51, 0.5, 0.48
        ([[1.0, 3.0], [2.0, 0.0]], 0.99, [2.99, 2.97], (2.2201 + 0.2601 + 0.25 + 0.2304) / 4),
        # without a memory, the deviation of the rewards themselves
        ([[1.0], [5.0], [3.0]], 0.0, [3.0], 8 / 3),
    ],
)
def test_deviation_of_the_discounted_sum_by_hand(
    rewards: list[list[float]], gamma: float, sums: list[float], variance: float
) -> None:
    scale = scale_of(rewards, gamma)
    assert scale.sums is not None
    np.testing.assert_allclose(scale.sums, np.array(sums))
    assert scale.std == pytest.approx(variance**0.5, rel=1e-3)


@pytest.mark.parametrize("level", [1e-3, 1.0, 1e4])
def test_of_a_constant_in_closed_form(level: float) -> None:
    gamma, length = 0.99, 20_000
    scale = scale_of([[level]] * length, gamma)
    # The geometric series: c_t = r (1 - gamma^t) / (1 - gamma).
    series = level * (1.0 - gamma ** np.arange(1, length + 1)) / (1.0 - gamma)
    assert scale.std == pytest.approx(series.std(), rel=1e-3)


def test_another_unit_of_reward_is_another_unit_of_deviation() -> None:
    rewards = np.random.default_rng(0).exponential(size=(500, 4))
    small, large = scale_of(rewards.tolist(), 0.99), scale_of((1000 * rewards).tolist(), 0.99)
    assert large.std == pytest.approx(1000 * small.std, rel=1e-4)


def test_other_environments_begin_at_nothing() -> None:
    scale = scale_of([[1.0], [2.0]], 0.5)
    before = scale.std
    scale.restart()
    assert scale.std == before
    scale.update(np.array([3.0, 4.0]))
    np.testing.assert_array_equal(scale.sums, [3.0, 4.0])


def test_goes_on_where_it_was_saved() -> None:
    rewards = np.random.default_rng(0).exponential(size=(40, 3)).tolist()
    whole, resumed = scale_of(rewards, 0.9), ForwardScale(0.9)
    resumed.load_state_dict(scale_of(rewards[:17], 0.9).state_dict())
    for row in rewards[17:]:
        resumed.update(np.array(row))
    assert resumed.std == whole.std


def test_many_steps_at_once_are_the_same() -> None:
    rewards = np.random.default_rng(0).exponential(size=(40, 3))
    one, whole = scale_of(rewards.tolist(), 0.9), ForwardScale(0.9)
    for rows in (rewards[:7], rewards[7:7], rewards[7:]):
        whole.extend(rows)
    assert whole.std == pytest.approx(one.std, rel=1e-12)
    assert whole.sums is not None and one.sums is not None
    np.testing.assert_allclose(whole.sums, one.sums)
    assert whole.measured == one.measured == 120


def test_a_unit_is_a_schedule_over_a_deviation() -> None:
    rewards = np.random.default_rng(0).exponential(size=(40, 3))
    unit, scale = BonusUnit("lin_0.4", 0.9), scale_of(rewards.tolist(), 0.9)
    for row in rewards[:25]:
        unit.measure(row)
    assert unit.take_mean() == pytest.approx(rewards[:25].mean())
    resumed = BonusUnit("lin_0.4", 0.9)
    unit.set_factor(0.5)
    resumed.load_state_dict(unit.state_dict())
    for row in rewards[25:]:
        resumed.measure(row)
    assert resumed.take_mean() == pytest.approx(rewards[25:].mean())
    assert resumed.take_mean() is None
    assert resumed.scale.std == pytest.approx(scale.std)
    assert resumed.at(0.5) == pytest.approx(0.5 * 0.2)
    resumed.forget()
    assert resumed.scale.measured == 0 and resumed.at(0.5) == pytest.approx(0.5 * 0.2)


def test_nothing_is_divided_by_zero() -> None:
    assert scale_of([[0.0]] * 1000, 0.99).std > 0.0
    assert scale_of([[1e3]] * 1000, 0.0).std > 0.0


@pytest.mark.parametrize("gamma", [-0.1, 1.0, float("nan")])
def test_wrong_discounts_are_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma="):
        ForwardScale(gamma)


@pytest.mark.parametrize(
    ("value", "at_start", "halfway", "at_end"),
    [
        (0.3, 0.3, 0.3, 0.3),
        (0, 0.0, 0.0, 0.0),
        ("lin_0.4", 0.4, 0.2, 0.0),
        (LinearSchedule(1.0, 0.2, 0.5), 1.0, 0.2, 0.2),
    ],
)
def test_schedules(value: object, at_start: float, halfway: float, at_end: float) -> None:
    schedule = make_schedule(value)  # type: ignore[arg-type]
    assert [schedule(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([at_start, halfway, at_end])


@pytest.mark.parametrize("value", ["0.4", "exp_0.4", "lin_x", "lin_", "lin_-1", -0.1, float("inf"), float("nan")])
def test_wrong_schedules_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="'lin_0"):
        make_schedule(value)  # type: ignore[arg-type]


@given(st.dictionaries(st.integers(1, 30), st.integers(1, 9), max_size=4), st.integers(1, 9), st.integers(0, 40))
def test_a_period_holds_until_the_next(later: dict[int, int], first: int, timestep: int) -> None:
    period = make_period({**later, 0: first}, "train_freq")
    in_force = first
    for step in range(timestep + 1):
        in_force = later.get(step, in_force)
    assert period(timestep) == in_force
    assert make_period(first, "train_freq")(timestep) == first
    drawn: Any = np.int64(first)
    assert make_period(drawn, "train_freq")(timestep) == first


@pytest.mark.parametrize("value", [0, {}, {100: 1}, {0: 0}, {-1: 1, 0: 1}, {0: 1.5}, {"0": 1}, {0: 1, "9": 2}])
def test_what_is_no_period(value: Any) -> None:
    with pytest.raises(ValueError, match=f"train_freq={re.escape(repr(value))}"):
        make_period(value, "train_freq")
