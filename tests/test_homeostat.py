"""The homeostatic reward: its closed forms, and the trap that it warns of."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persist_sb3.homeostat import Homeostat, PaidToDieWarning
from persist_sb3.viability import ViabilitySet

MU, W = (0.7, 0.5, 0.9), (1.0, 0.5, 1.5)
DIMS = ("energy", "temp", "integrity")
CONSTRAINTS = ("energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6")
VIABILITY = ViabilitySet(CONSTRAINTS, DIMS, mu=MU, low=(0, 0, 0), high=(1, 1, 1))

NUMBERS = st.floats(-3, 3)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5)


def test_closed_forms() -> None:
    homeostat = Homeostat((0.0, 1.0), (4.0, 9.0))
    x = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 2.0], [1.0, 2.0], [-2.0, 0.0]])
    np.testing.assert_array_equal(homeostat.deviation(x), [0, 4, 9, 13, 25])
    np.testing.assert_allclose(homeostat.drive(x), np.sqrt([0, 4, 9, 13, 25]), rtol=1e-15)


def test_drive_with_other_exponents() -> None:
    # (1 * 2^3 + 2 * 3^3)^(1/1.5) = 62^(2/3)
    drive = Homeostat((0.0, 0.0), (1.0, 2.0), n=3, m=1.5).drive(np.array([[-2.0, 3.0]]))
    np.testing.assert_allclose(drive, [62 ** (2 / 3)], rtol=1e-14)


def test_reward_adds_the_bonus_alive_and_takes_the_penalty_dead() -> None:
    x, x_next, dead = np.array([[1.0], [1.0]]), np.array([[3.0], [3.0]]), np.array([False, True])
    outcomes: dict[str, Any] = {"alive_bonus": 0.25, "death_penalty": 100.0}
    deviation = Homeostat((0.0,), (2.0,), **outcomes).reward(x, x_next, dead)
    np.testing.assert_array_equal(deviation, [-18.0 + 0.25, -18.0 - 100.0])
    reduction = Homeostat((0.0,), (4.0,), form="drive_reduction", **outcomes).reward(x, x_next, dead)
    np.testing.assert_array_equal(reduction, [2.0 - 6.0 + 0.25, 2.0 - 6.0 - 100.0])


@given(ROWS, st.sampled_from([1.0, 2.0, 3.0, 4.5]), st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_forms_agree_with_arithmetic_on_one_number_at_a_time(rows: list[tuple[float, ...]], n: float, m: float) -> None:
    homeostat = Homeostat(MU, W, n=n, m=m)
    deviation, drive = homeostat.deviation(np.array(rows)), homeostat.drive(np.array(rows))
    for row, got_deviation, got_drive in zip(rows, deviation, drive, strict=True):
        terms = list(zip(row, MU, W, strict=True))
        assert math.isclose(got_deviation, sum(w * (x - mu) ** 2 for x, mu, w in terms), rel_tol=1e-12, abs_tol=1e-300)
        expected = sum(w * abs(x - mu) ** n for x, mu, w in terms) ** (1 / m)
        assert math.isclose(got_drive, expected, rel_tol=1e-12, abs_tol=1e-150)


@given(st.integers(0, 10_000), st.floats(0, 0.999))
def test_drive_reduction_telescopes(seed: int, gamma: float) -> None:
    homeostat = Homeostat(MU, W, form="drive_reduction")
    x = np.random.default_rng(seed).uniform(0, 1, (201, 3))
    alive = np.zeros(200, dtype=bool)
    rewards = homeostat.reward(x[:-1], x[1:], alive)
    drive = homeostat.drive(x)
    np.testing.assert_allclose(rewards.sum(), drive[0] - drive[-1], rtol=0, atol=1e-12)
    # The identity of the class's docstring, with the last drive written out instead of an endless life.
    discount = gamma ** np.arange(200)
    expected = drive[0] - (1 - gamma) * (discount[:-1] * drive[1:-1]).sum() - discount[-1] * drive[-1]
    np.testing.assert_allclose((discount * rewards).sum(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["deviation", "drive_reduction"])
def test_a_state_is_rewarded_the_same_alone_and_in_any_batch(form: Any) -> None:
    rng = np.random.default_rng(0)
    homeostat = Homeostat(rng.random(11), rng.random(11), form=form, n=3, alive_bonus=0.1, death_penalty=5.0)
    x, x_next, dead = rng.random((64, 11)), rng.random((64, 11)), rng.random(64) < 0.5
    alone = [homeostat.reward(x[i : i + 1], x_next[i : i + 1], dead[i : i + 1])[0] for i in range(64)]
    np.testing.assert_array_equal(alone, homeostat.reward(x, x_next, dead))


def test_worst_deviation_is_in_the_farthest_corner() -> None:
    # Corners farthest from mu: energy 0.2 (0.5 away), temp 0.3 or 0.7 (0.2), integrity 0.6 (0.3).
    expected = 1.0 * 0.25 + 0.5 * 0.04 + 1.5 * 0.09
    homeostat = Homeostat(MU, W, alive_bonus=0.1)
    assert math.isclose(homeostat.worst_reward(VIABILITY), 0.1 - expected, rel_tol=1e-12)
    assert math.isclose(homeostat.safe_alive_bonus(VIABILITY), expected, rel_tol=1e-12)
    # Sampling inside comes close to it and never below.
    x = np.random.default_rng(0).uniform(0, 1, (200_000, 3))
    inside = x[VIABILITY.contains(x)]
    rewards = homeostat.reward(inside, inside, np.zeros(len(inside), dtype=bool))
    assert homeostat.worst_reward(VIABILITY) <= rewards.min() < homeostat.worst_reward(VIABILITY) + 0.05


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_worst_drive_reduction_is_the_discounted_cost_of_living_at_the_edge(gamma: float) -> None:
    homeostat = Homeostat(MU, W, form="drive_reduction")
    greatest = math.sqrt(1.0 * 0.25 + 0.5 * 0.04 + 1.5 * 0.09)
    assert math.isclose(homeostat.worst_reward(VIABILITY, gamma), -(1 - gamma) * greatest, rel_tol=1e-12)
    # From the setpoint straight to that corner, and there for ever (long enough for the discount to vanish).
    x = np.array([MU] + [(0.2, 0.3, 0.6)] * 5000)
    rewards = homeostat.reward(x[:-1], x[1:], np.zeros(5000, dtype=bool))
    total = (gamma ** np.arange(5000) * rewards).sum()
    assert math.isclose(total, homeostat.worst_reward(VIABILITY, gamma) / (1 - gamma), rel_tol=1e-9)


@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.9, 0.99]), st.sampled_from(["deviation", "drive_reduction"]))
def test_with_the_safe_bonus_no_life_inside_loses(seed: int, gamma: float, form: Any) -> None:
    bonus = Homeostat(MU, W, form=form).safe_alive_bonus(VIABILITY, gamma)
    homeostat = Homeostat(MU, W, form=form, alive_bonus=bonus)
    rng = np.random.default_rng(seed)
    low, high = VIABILITY.box()
    x = np.vstack([[MU], np.where(rng.random((3000, 3)) < 0.5, low, high)])
    rewards = homeostat.reward(x[:-1], x[1:], np.zeros(3000, dtype=bool))
    assert (gamma ** np.arange(3000) * rewards).sum() >= -1e-9
    if form == "deviation":
        assert rewards.min() >= -1e-12


def test_the_answer_is_on_the_safe_side_where_a_constraint_joins_variables() -> None:
    joined = ViabilitySet((*CONSTRAINTS, "energy + integrity >= 1.2"), DIMS, low=(0, 0, 0), high=(1, 1, 1))
    homeostat = Homeostat(MU, W)
    x = np.random.default_rng(0).uniform(0, 1, (100_000, 3))
    assert homeostat.worst_reward(joined) <= -homeostat.deviation(x[joined.contains(x)]).max()


def test_widening_the_set_raises_what_is_safe() -> None:
    homeostat = Homeostat(MU, W)
    bonuses = [homeostat.safe_alive_bonus(VIABILITY.tighten(k)) for k in (2.0, 1.0, 0.5)]
    assert bonuses == sorted(bonuses)
    # At k = 2 every limit is half as far from mu, except where high = 1 stays.
    assert math.isclose(bonuses[0], 0.3**2 + 0.5 * 0.1**2 + 1.5 * 0.15**2, rel_tol=1e-12)


def test_an_unbounded_variable_matters_only_with_weight() -> None:
    open_set = ViabilitySet(("energy >= 0.2", "temp in [0.3, 0.7]"), ("energy", "temp"), mu=(0.7, 0.5))
    assert Homeostat((0.7, 0.5), (1.0, 1.0)).worst_reward(open_set) == -math.inf
    assert math.isclose(Homeostat((0.7, 0.5), (0.0, 1.0)).worst_reward(open_set), -0.04, rel_tol=1e-12)
    with pytest.warns(PaidToDieWarning, match="loses without limit, because nothing bounds energy; .* or low and high"):
        Homeostat((0.7, 0.5), (1.0, 1.0), death_penalty=1e6).check(open_set)


def test_a_reward_that_can_pay_to_die_warns_with_numbers_and_remedy() -> None:
    with pytest.warns(PaidToDieWarning) as caught:
        Homeostat(MU, W).check(VIABILITY)
    assert str(caught[0].message) == (
        "the deviation reward (alive_bonus=0, death_penalty=0) can pay the agent to die: life at the edge of the "
        "viability set loses 0.405 a step, 40.5 in all at gamma=0.99; dying ends that at the price of 0. "
        "Use alive_bonus >= 0.4051, or death_penalty >= 40.5."
    )


@pytest.mark.parametrize(
    ("parameters", "warns"),
    [
        ({}, True),
        ({"alive_bonus": 0.4}, True),
        ({"alive_bonus": 0.4051}, False),
        ({"death_penalty": 40.0}, True),
        ({"death_penalty": 41.0}, False),
        ({"alive_bonus": 0.2, "death_penalty": 20.0}, True),
        ({"alive_bonus": 0.2, "death_penalty": 21.0}, False),
        ({"form": "drive_reduction"}, True),
        ({"form": "drive_reduction", "alive_bonus": 0.0063}, True),
        ({"form": "drive_reduction", "alive_bonus": 0.0064}, False),
        ({"form": "drive_reduction", "death_penalty": 0.6}, True),
        ({"form": "drive_reduction", "death_penalty": 0.64}, False),
    ],
)
def test_when_it_warns(parameters: dict[str, Any], warns: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Homeostat(MU, W, **parameters).check(VIABILITY)
    assert [warning.category for warning in caught] == [PaidToDieWarning] * warns


@pytest.mark.parametrize("form", ["deviation", "drive_reduction"])
@given(w=st.tuples(*[st.floats(0.01, 100) | st.integers(1, 1000).map(lambda i: i / 10)] * 3))
def test_following_the_advice_silences_the_warning(form: Any, w: tuple[float, float, float]) -> None:
    with pytest.warns(PaidToDieWarning) as caught:
        Homeostat(MU, w, form=form).check(VIABILITY)
    words = str(caught[0].message).rstrip(".").split()
    advice = {words[i - 1]: float(words[i + 1].rstrip(",")) for i, word in enumerate(words) if word == ">="}
    assert set(advice) == {"alive_bonus", "death_penalty"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, value in advice.items():
            Homeostat(MU, w, form=form, **{name: value}).check(VIABILITY)
        exact = Homeostat(MU, w, form=form).safe_alive_bonus(VIABILITY)
        Homeostat(MU, w, form=form, alive_bonus=exact).check(VIABILITY)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"w": (1.0, -0.5, 1.0)}, r"w=\[1.0, -0.5, 1.0\] must be finite, at least 0, and not all 0"),
        ({"w": (1.0, math.nan, 1.0)}, r"w=\[1.0, nan, 1.0\] must be finite"),
        ({"w": (1.0, math.inf, 1.0)}, r"w=\[1.0, inf, 1.0\] must be finite"),
        ({"w": (0.0, 0.0, 0.0)}, "not all 0"),
        ({"w": (1.0, 1.0)}, r"mu and w need one number a variable each, but have shapes \(3,\) and \(2,\)"),
        ({"mu": ((0.5,),), "w": ((1.0,),)}, r"have shapes \(1, 1\) and \(1, 1\)"),
        ({"mu": (0.7, math.nan, 0.9)}, r"mu=\[0.7, nan, 0.9\] must be finite"),
        ({"n": 0.0}, "n=0.0 must be positive and finite"),
        ({"m": -1.0}, "m=-1.0 must be positive and finite"),
        ({"m": math.nan}, "m=nan must be positive and finite"),
        ({"alive_bonus": math.inf}, "alive_bonus=inf must be finite"),
        ({"death_penalty": -1.0}, "death_penalty=-1.0 must be finite and at least 0: it is subtracted"),
        ({"form": "drive-reduction"}, r"form='drive-reduction' is unknown \(did you mean 'drive_reduction'\?\)"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Homeostat(**{"mu": MU, "w": W, **parameters})


def test_wrong_shapes_are_named() -> None:
    homeostat = Homeostat(MU, W)
    with pytest.raises(ValueError, match=r"x has shape \(4, 1\); its last axis must hold 3 internal variables"):
        homeostat.reward(np.zeros((4, 3)), np.zeros((4, 1)), np.zeros(4, dtype=bool))
    with pytest.raises(ValueError, match=r"the homeostat has 3 variables, the viability set \('x',\)"):
        homeostat.check(ViabilitySet(("x >= 0",), ("x",)))
    with pytest.raises(ValueError, match=r"gamma=1\.0 must be at least 0 and below 1"):
        homeostat.worst_reward(VIABILITY, gamma=1.0)
