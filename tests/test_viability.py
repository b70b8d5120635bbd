"""The viability set: its margins, its edge, its errors, and what tightening does to it."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persist_sb3.viability import LeastMargin, ViabilitySet

DIMS = ("energy", "temp", "integrity")
CONSTRAINTS = ("energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6")
MU = (0.7, 0.5, 0.9)
MIXED = ("energy >= 0.2", "energy + 0.5*integrity >= 0.4", "abs(temp - 0.5) <= 0.2", "abs(temp) <= 0.7")


def gridlife(**kwargs: Any) -> ViabilitySet:
    return ViabilitySet(CONSTRAINTS, DIMS, **{"mu": MU, "low": (0, 0, 0), "high": (1, 1, 1), **kwargs})


def states(n: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 1.5, (n, 3))


# Any value, and often one at or next to a limit.
LIMITS = [0.2, 0.3, 0.7, 0.6]
NEAR = st.sampled_from(
    [f(v) for v in LIMITS for f in (float, lambda v: np.nextafter(v, 9), lambda v: np.nextafter(v, -9))]
)
COORDINATE = st.floats(-2, 2) | NEAR
STATE = st.tuples(COORDINATE, COORDINATE, COORDINATE)
FACTOR = st.floats(0.25, 4.0)


@given(STATE)
def test_membership_is_the_plain_inequalities_to_the_last_bit(x: tuple[float, float, float]) -> None:
    energy, temp, integrity = x
    holds = [energy >= 0.2, 0.3 <= temp <= 0.7, integrity >= 0.6]
    viability = gridlife()
    row = np.array([x])
    np.testing.assert_array_equal(viability.margins(row)[0] >= 0, holds)
    np.testing.assert_array_equal(viability.raw_margins(row)[0] >= 0, holds)
    assert viability.contains(row)[0] == all(holds)
    assert (viability.violated(row)[0] == -1) == all(holds)


@given(STATE)
def test_computed_constraints_are_decided_by_their_sides(x: tuple[float, float, float]) -> None:
    energy, temp, integrity = x
    holds = [energy >= 0.2, energy + 0.5 * integrity >= 0.4, abs(temp - 0.5) <= 0.2, abs(temp) <= 0.7]
    viability = ViabilitySet(MIXED, DIMS)
    np.testing.assert_array_equal(viability.margins(np.array([x]))[0] >= 0, holds)
    assert viability.contains(np.array([x]))[0] == all(holds)


def test_raw_margins_are_each_constraint_s_own() -> None:
    viability = ViabilitySet(
        (*MIXED, "2*energy >= 0.5", "integrity/3 <= 0.3", "1 - temp >= 0.1", "energy >= temp"), DIMS
    )
    x = states()
    values = dict(zip(DIMS, x.T, strict=True))
    expected = np.column_stack([constraint.margin(values) for constraint in viability.constraints])
    np.testing.assert_array_equal(viability.raw_margins(x), expected)
    energy, temp, integrity = x.T
    by_hand = [2 * energy - 0.5, 0.3 - integrity / 3, 1 - temp - 0.1, energy - temp]
    np.testing.assert_array_equal(viability.raw_margins(x)[:, 4:], np.column_stack(by_hand))


def test_margins_are_one_at_the_setpoint_and_zero_on_the_boundary() -> None:
    viability = gridlife()
    np.testing.assert_allclose(viability.scale, [0.5, 0.2, 0.3], rtol=1e-12)
    np.testing.assert_array_equal(viability.margins(np.array([MU])), [[1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(viability.margins(np.array([[0.2, 0.3, 0.6]])), [[0.0, 0.0, 0.0]])
    np.testing.assert_allclose(viability.margins(np.array([[0.1, 0.8, 1.0]])), [[-0.2, -0.5, 4 / 3]], rtol=1e-12)


def test_scale_is_one_without_a_setpoint_and_what_is_given_otherwise() -> None:
    x = states()
    plain = ViabilitySet(CONSTRAINTS, DIMS)
    np.testing.assert_array_equal(plain.margins(x), plain.raw_margins(x))
    given_scale = gridlife(scale=(2.0, 4.0, 8.0))
    np.testing.assert_array_equal(given_scale.margins(x), plain.margins(x) / [2.0, 4.0, 8.0])


def test_violated_names_the_most_negative_scaled_margin() -> None:
    # Unscaled, energy is broken by more (0.15 against 0.1); scaled, temp is (0.3 against 0.5).
    x = np.array([[0.05, 0.8, 0.9], [0.1, 0.5, 0.9], [0.7, 0.5, 0.5], [0.7, 0.5, 0.9]])
    np.testing.assert_array_equal(gridlife().violated(x), [1, 0, 2, -1])
    assert gridlife().names[1] == "temp in [0.3, 0.7]"


@pytest.mark.parametrize("constraints", [CONSTRAINTS, MIXED])
@pytest.mark.parametrize("k", [1.0, 1.7])
def test_torch_answers_as_numpy_does(constraints: tuple[str, ...], k: float) -> None:
    viability = ViabilitySet(constraints, DIMS, mu=MU).tighten(k)
    x = states()
    tensor = torch.tensor(x)
    np.testing.assert_allclose(viability.margins(tensor).numpy(), viability.margins(x), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(viability.contains(tensor).numpy(), viability.contains(x))
    np.testing.assert_array_equal(viability.violated(tensor).numpy(), viability.violated(x))


def test_whole_numbers_are_not_taken_for_whole_limits() -> None:
    x = np.array([[1, 0, 1], [0, 1, 0]])
    viability = ViabilitySet(MIXED, DIMS)
    np.testing.assert_array_equal(viability.margins(x), viability.margins(x.astype(np.float64)))
    tensor = viability.margins(torch.tensor(x))
    np.testing.assert_allclose(tensor.numpy(), viability.margins(x), rtol=0, atol=1e-6)


def test_torch_margins_carry_gradients() -> None:
    x = torch.tensor([[0.5, 0.6, 0.9]], requires_grad=True)
    viability = ViabilitySet((*CONSTRAINTS, "energy + 0.5*integrity >= 0.4"), DIMS)
    viability.margins(x).sum().backward()
    assert x.dtype == viability.margins(x).dtype == torch.float32
    torch.testing.assert_close(x.grad, torch.tensor([[2.0, -1.0, 1.5]]))


@pytest.mark.parametrize("constraints", [CONSTRAINTS, MIXED])
def test_a_state_has_the_same_margins_alone_and_in_any_batch(constraints: tuple[str, ...]) -> None:
    viability = ViabilitySet(constraints, DIMS, mu=MU).tighten(1.3)
    x = states(64)
    together = viability.margins(x)
    np.testing.assert_array_equal(np.concatenate([viability.margins(row[None]) for row in x]), together)
    np.testing.assert_array_equal(viability.margins(x.reshape(4, 16, 3)), together.reshape(4, 16, -1))
    np.testing.assert_array_equal(viability.margins(x[0]), together[0])
    assert viability.violated(x[0]) == viability.violated(x)[0]


@pytest.mark.parametrize("constraints", [CONSTRAINTS, MIXED, ("energy >= 0.2",)])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_state_with_nan_is_never_inside(constraints: tuple[str, ...], column: int) -> None:
    x = np.array([MU, MU])
    x[0, column] = np.nan
    viability = ViabilitySet(constraints, DIMS)
    point: Any
    for point in (x, torch.tensor(x)):
        assert viability.contains(point).tolist() == [False, True]
        assert viability.violated(point)[0] >= 0
        assert viability.violated(point)[1] == -1


@pytest.mark.parametrize("constraints", [CONSTRAINTS, MIXED])
@pytest.mark.parametrize("k", [0.5, 1.0])
def test_the_least_margin_is_that_of_all_margins(constraints: tuple[str, ...], k: float) -> None:
    viability = ViabilitySet(constraints, DIMS, mu=MU, low=(0, 0, 0), high=(1, 1, 1)).tighten(k)
    x = states(60)
    x[::7, 0], x[::11, 2] = 0.2, 0.6
    x[3, 1], x[4, 0], x[5, 2] = math.nan, math.inf, -math.inf
    before = x.copy()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(LeastMargin(viability, 60)(x), viability.margins(x).min(axis=1))
    np.testing.assert_array_equal(x, before)


def test_inputs_are_left_as_they_are() -> None:
    x = states()
    before = x.copy()
    gridlife().tighten(2.0).violated(x)
    np.testing.assert_array_equal(x, before)


@given(STATE, FACTOR)
def test_tighten_follows_its_formula(x: tuple[float, float, float], k: float) -> None:
    row, mu = np.array([x]), np.array(MU)
    for viability in (gridlife(), ViabilitySet(MIXED, DIMS, mu=MU)):
        expected = viability.margins(mu + k * (row - mu)) / k
        np.testing.assert_allclose(viability.tighten(k).margins(row), expected, rtol=0, atol=1e-12)


@given(FACTOR, FACTOR)
def test_tighten_composes(a: float, b: float) -> None:
    for viability in (gridlife(), ViabilitySet(MIXED, DIMS, mu=MU)):
        twice, once = viability.tighten(a).tighten(b), viability.tighten(a * b)
        assert twice == once
        assert hash(twice) == hash(once)
        np.testing.assert_array_equal(twice.margins(states()), once.margins(states()))


def test_tighten_moves_the_limits_and_leaves_the_original() -> None:
    viability = gridlife()
    narrow, wide = viability.tighten(2.0), viability.tighten(0.5)
    np.testing.assert_allclose(narrow.box()[0], [0.45, 0.4, 0.75], rtol=1e-12)
    np.testing.assert_allclose(narrow.box()[1], [1.0, 0.6, 1.0], rtol=1e-12)
    np.testing.assert_allclose(wide.box()[0], [0.0, 0.1, 0.3], rtol=1e-12)  # energy: low cuts -0.3 off
    np.testing.assert_allclose(wide.box()[1], [1.0, 0.9, 1.0], rtol=1e-12)
    assert viability.tightness == 1.0
    assert viability == gridlife()
    assert viability != narrow
    x = states(500)
    assert (narrow.contains(x) <= viability.contains(x)).all()
    assert (viability.contains(x) <= wide.contains(x)).all()


def test_box_takes_what_each_constraint_says_of_one_variable() -> None:
    viability = ViabilitySet(
        ("2*energy >= 0.5", "abs(temp - 0.5) <= 0.25", "temp <= 0.6", "energy + integrity >= 0.5"), DIMS, low=(0, 0, -1)
    )
    low, high = viability.box()
    np.testing.assert_allclose(low, [0.25, 0.25, -1.0], rtol=1e-12)
    np.testing.assert_allclose(high, [math.inf, 0.6, math.inf], rtol=1e-12)


@given(st.integers(0, 10_000))
def test_box_encloses_the_set(seed: int) -> None:
    viability = ViabilitySet(MIXED, DIMS, mu=MU)
    x = states(100, seed)
    low, high = viability.box()
    inside = x[viability.contains(x)]
    assert ((inside >= low - 1e-12) & (inside <= high + 1e-12)).all()


def test_pickle_round_trips() -> None:
    for viability in (gridlife().tighten(1.5), ViabilitySet(MIXED, DIMS)):
        copy = pickle.loads(pickle.dumps(viability))
        assert copy == viability
        np.testing.assert_array_equal(copy.margins(states()), viability.margins(states()))


def test_parameters_cannot_be_changed_in_place() -> None:
    viability = gridlife()
    assert viability.mu is not None
    for vector in (viability.mu, viability.low, viability.high, viability.scale):
        with pytest.raises(ValueError, match="read-only"):
            vector[0] = 0.0


@pytest.mark.parametrize("x", [np.zeros(2), np.zeros((4, 2)), np.zeros(()), torch.zeros(4, 1)])
def test_wrong_shape_names_the_shape_and_the_variables(x: Any) -> None:
    for method in (gridlife().margins, gridlife().raw_margins, gridlife().contains, gridlife().violated):
        with pytest.raises(ValueError, match=r"x has shape \(.*\); its last axis must hold the 3 variables .*'temp'"):
            method(x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constraints": ["enrgy >= 0.2"]},
         r"constraint 'enrgy >= 0.2': unknown internal variable 'enrgy' \(did you mean 'energy'\?\); there are energy"),
        ({"constraints": ["q >= 0.2"]}, r"unknown internal variable 'q'; there are energy"),
        ({"constraints": []}, "needs at least one constraint"),
        ({"constraints": ["energy >= "]}, r"malformed constraint: .*\n    energy >=\n             \^"),
        ({"dims": []}, "dims is empty"),
        ({"dims": ["energy", "temp", "energy"]}, "dims names 'energy' twice"),
        ({"dims": ["energy", "temp", "in"]}, "'in' cannot name an internal variable"),
        ({"dims": ["energy", "temp", "pole angle"]}, "'pole angle' cannot name an internal variable"),
        ({"mu": (0.7, 0.5)}, r"mu has shape \(2,\), but there are 3 internal variables"),
        ({"low": (0.0,)}, r"low has shape \(1,\)"),
        ({"high": ((1, 1, 1),)}, r"high has shape \(1, 3\)"),
        ({"scale": (1, 1)}, r"scale has shape \(2,\), but there are 3 constraints"),
        ({"scale": (1, 0, 1)}, r"scale of 'temp in \[0.3, 0.7\]' is 0; it must be positive and finite"),
        ({"scale": (1, 1, math.nan)}, "scale of 'integrity >= 0.6' is nan"),
        ({"mu": (0.7, math.nan, 0.9)}, "mu of 'temp' is NaN"),
        ({"mu": (0.7, 0.5, math.inf), "high": None}, r"mu of 'integrity' is inf, outside its range \[0, inf\]"),
        ({"mu": (0.7, 0.5, 1.2)}, r"mu of 'integrity' is 1.2, outside its range \[0, 1\]"),
        ({"mu": (0.7, 0.8, 0.9)},
         r"mu lies outside the viability set: 'temp in \[0.3, 0.7\]' has margin -0.1 at temp = 0.8"),
        ({"mu": (0.2, 0.5, 0.9)}, r"mu lies on the boundary of 'energy >= 0.2', .* move mu inside, or give scale"),
        ({"low": (0, 1, 0)}, "low must be below high; for 'temp' low=1 and high=1"),
        ({"low": (0, math.nan, 0)}, "low of 'temp' is NaN"),
        ({"constraints": ["energy >= 1.5"]}, r"constraint 'energy >= 1.5' cannot be satisfied with energy in \[0, 1\]"),
        ({"constraints": ["temp in [0.7, 0.3]"]}, r"'temp in \[0.7, 0.3\]' cannot be satisfied"),
        ({"constraints": ["abs(temp) <= -0.1"], "low": None, "high": None}, "cannot be satisfied with temp in "),
        ({"constraints": ["energy + temp >= 2.5"]}, r"cannot be satisfied with energy in \[0, 1\], temp in \[0, 1\]"),
        ({"constraints": ["energy >= -0.1"]}, r"'energy >= -0.1' can never be violated with energy in \[0, 1\]"),
        ({"constraints": ["energy > 0"]}, r"'energy > 0' can never be violated .* '<' and '>' count as '<=' and '>='"),
        ({"constraints": ["abs(temp) >= -1"], "low": None, "high": None}, "can never be violated"),
        ({"constraints": ["energy >= 0.6", "temp >= 0.1", "energy <= 0.4"]},
         r"'energy' cannot hold together: \['energy >= 0.6', 'energy <= 0.4'\] ask for at least 0.6 and at most 0.4"),
        ({"constraints": ["energy <= 0.3", "temp <= 0.3", "energy + temp >= 0.7"]},
         r"constraint 'energy \+ temp >= 0.7' cannot hold together with the others"),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(changes: dict[str, Any], message: str) -> None:
    parameters: dict[str, Any] = {
        "constraints": CONSTRAINTS,
        "dims": DIMS,
        "mu": MU,
        "low": (0, 0, 0),
        "high": (1, 1, 1),
    }
    if "constraints" in changes and "mu" not in changes:
        parameters["mu"] = None
    with pytest.raises(ValueError, match=message):
        ViabilitySet(**{**parameters, **changes})


@pytest.mark.parametrize(
    ("constraints", "dims", "message"),
    [("energy >= 0.2", DIMS, r"use \['energy >= 0.2'\]"), (CONSTRAINTS, "energy", r"use \['energy'\]")],
)
def test_one_string_is_not_a_list_of_strings(constraints: Any, dims: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ViabilitySet(constraints, dims)


@pytest.mark.parametrize("k", [0.0, -1.0, math.inf, math.nan])
def test_tighten_refuses_what_is_not_a_factor(k: float) -> None:
    with pytest.raises(ValueError, match="k must be positive and finite"):
        gridlife().tighten(k)


def test_tighten_needs_a_setpoint() -> None:
    with pytest.raises(RuntimeError, match="without a setpoint cannot be tightened; give it mu"):
        ViabilitySet(CONSTRAINTS, DIMS).tighten(2.0)
