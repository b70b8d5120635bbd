"""The grammar of constraints: what it means, what it refuses, and where it points when it does."""

import pickle
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persist_sb3.constraints import MAX_NESTING, MAX_TOKENS, Constraint, ConstraintSyntaxError

VALUES = {
    "energy": np.array([0.1, 0.2, 0.7, 1.0]),
    "temp": np.array([0.3, 0.5, 0.7, 0.9]),
    "theta": np.array([-0.3, -0.2, 0.0, 0.25]),
}
ENERGY, TEMP, THETA = VALUES.values()

MEANINGS = [
    ("energy >= 0.2", ENERGY - 0.2),
    ("energy > 0.2", ENERGY - 0.2),
    ("0.2 <= energy", ENERGY - 0.2),
    ("energy <= 0.2", 0.2 - ENERGY),
    ("0.2 > energy", 0.2 - ENERGY),
    ("energy>=2e-1", ENERGY - 0.2),
    ("energy >= .5E+0", ENERGY - 0.5),
    ("energy >= 1.", ENERGY - 1.0),
    ("temp in [0.3, 0.7]", np.minimum(TEMP - 0.3, 0.7 - TEMP)),
    ("0.3 <= temp <= 0.7", np.minimum(TEMP - 0.3, 0.7 - TEMP)),
    ("0.7 >= temp > 0.3", np.minimum(TEMP - 0.3, 0.7 - TEMP)),
    ("abs(theta) <= 0.2", 0.2 - np.abs(THETA)),
    ("abs(theta) >= 0.2", np.abs(THETA) - 0.2),
    ("abs(temp - 0.5) <= 0.2", 0.2 - np.abs(TEMP - 0.5)),
    ("energy + 0.5*temp >= 0.4", (ENERGY + 0.5 * TEMP) - 0.4),
    ("energy - temp - theta >= 0", (ENERGY - TEMP) - THETA),
    ("energy - (temp - theta) >= 0", ENERGY - (TEMP - THETA)),
    ("energy / temp / 2 >= 0.1", (ENERGY / TEMP) / 2 - 0.1),
    ("energy / (temp / 2) >= 0.1", ENERGY / (TEMP / 2) - 0.1),
    ("energy + temp * theta >= 0", ENERGY + TEMP * THETA),
    ("(energy + temp) * theta >= 0", (ENERGY + TEMP) * THETA),
    ("-theta * 2 >= -1", (-THETA) * 2 + 1),
    ("--theta >= +0.1", THETA - 0.1),
    ("energy >= temp", ENERGY - TEMP),
    ("energy <= temp + 0.1", (TEMP + 0.1) - ENERGY),
    ("theta <= energy <= temp", np.minimum(ENERGY - THETA, TEMP - ENERGY)),
    ("energy in [theta, 2*temp]", np.minimum(ENERGY - THETA, 2 * TEMP - ENERGY)),
    ("energy >= 1/4 + 2*3 - abs(-6)", ENERGY - 0.25),
    ("  energy\n  >=\t0.2 ", ENERGY - 0.2),
]


@pytest.mark.parametrize(("text", "expected"), MEANINGS)
def test_margin_is_what_the_inequality_says(text: str, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(Constraint(text).margin(VALUES), expected)


@pytest.mark.parametrize(("text", "expected"), MEANINGS)
def test_torch_gives_the_same_margin_and_a_gradient(text: str, expected: np.ndarray) -> None:
    tensors = {name: torch.tensor(values, requires_grad=True) for name, values in VALUES.items()}
    margin = Constraint(text).margin(tensors)
    np.testing.assert_allclose(margin.detach().numpy(), expected, rtol=0, atol=1e-15)
    gradients = torch.autograd.grad(margin.sum(), [tensors[name] for name in Constraint(text).names])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_float32_tensors_stay_float32() -> None:
    margin = Constraint("abs(theta) <= 0.2").margin({"theta": torch.zeros(3)})
    assert margin.dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("temp - energy + 2*temp >= 0", ("temp", "energy")),
        ("χ_1 <= 2", ("χ_1",)),
        ("inside >= absolute", ("inside", "absolute")),
    ],
)
def test_names_come_in_order_of_appearance(text: str, names: tuple[str, ...]) -> None:
    assert Constraint(text).names == names


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("", 0, "expected a number, a variable, '(' or abs(...), found the end"),
        ("energy", 6, "expected an operator, a comparison (>=, <=, >, <) or 'in [low, high]', found the end"),
        ("energy >= ", 9, "expected a number, a variable, '(' or abs(...), found the end"),
        ("energy >= * 0.2", 10, "expected a number, a variable, '(' or abs(...), found '*'"),
        ("energy >== 0.2", 9, "unexpected character '='"),
        ("energy => 0.2", 7, "unexpected character '='"),
        ("energy != 0.2", 7, "unexpected character '!'"),
        ("energy ** 2 >= 0.2", 8, "expected a number, a variable, '(' or abs(...), found '*'"),
        ("energy >= 0.2 0.3", 14, "expected an operator or the end, found '0.3'"),
        ("2energy >= 0.2", 1, "found 'energy'"),
        ("energy >= 0.2.3", 13, "found '.3'"),
        ("energy >= 0,2", 11, "expected an operator or the end, found ','"),
        ("sin(energy) >= 0.2", 0, "unknown function 'sin'; the only one is abs"),
        ("abs energy >= 0.2", 4, "expected '(', found 'energy'"),
        ("(energy >= 0.2", 8, "expected ')', found '>='"),
        ("energy) >= 0.2", 6, "found ')'"),
        ("temp in 0.3, 0.7", 8, "expected '[', found '0.3'"),
        ("temp in [0.3 0.7]", 13, "expected ',', found '0.7'"),
        ("temp in [0.3, 0.7", 17, "expected ']', found the end"),
        ("temp in [0.3, 0.7] >= 2", 19, "expected an operator or the end, found '>='"),
        ("in >= 2", 0, "expected a number, a variable, '(' or abs(...), found 'in'"),
        ("0.3 <= temp >= 0.1", 12, "both comparisons of a chain must point the same way"),
        ("0 <= temp <= 1 <= 2", 15, "expected an operator or the end, found '<='"),
        ("0.3 <= 0.7", 4, "this compares two constants; name an internal variable"),
        ("1 <= 2 <= temp", 2, "this compares two constants; name an internal variable"),
        ("1 in [energy, 2]", 2, "this compares two constants; name an internal variable"),
        ("energy / (1 - 1) >= 0", 9, "division by zero"),
        ("energy >= 1e999", 10, "this number is too large for a float"),
        ("energy >= 1e300 * 1e300", 16, "this number is too large for a float"),
        ("energy >= 1 and temp >= 1", 12, "expected an operator or the end, found 'and'"),
        ("energy >= '1'", 10, "unexpected character"),
    ],
)
def test_malformed_constraint_has_a_caret_under_the_character(text: str, column: int, problem: str) -> None:
    with pytest.raises(ConstraintSyntaxError) as caught:
        Constraint(text)
    assert problem in caught.value.problem
    message, shown, caret = str(caught.value).split("\n")
    assert message.startswith("malformed constraint: ")
    assert shown.removeprefix("    ") == text.rstrip()
    assert caret.index("^") - 4 == column == caught.value.column


def test_a_constraint_that_is_not_text_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a constraint is a string such as 'energy >= 0.2', not 0.2"):
        Constraint(0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("opening", ["(", "-", "abs("])
def test_deep_nesting_is_refused_where_it_is_too_deep(opening: str) -> None:
    with pytest.raises(ConstraintSyntaxError, match=f"nested more than {MAX_NESTING} deep") as caught:
        Constraint(opening * 100)
    assert caught.value.column == MAX_NESTING * len(opening)


def test_length_is_limited_where_evaluation_is_still_safe() -> None:
    with pytest.raises(ConstraintSyntaxError, match=f"longer than {MAX_TOKENS} symbols; split it") as caught:
        Constraint("x" + "+x" * 10_000 + ">= 1")
    assert caught.value.column == MAX_TOKENS
    longest = Constraint("x" + "+x" * 253 + " >= 4")
    np.testing.assert_array_equal(longest.margin({"x": np.array([1.0, 2.0])}), [250.0, 504.0])


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("x >= 0.2", (0.2, np.inf)),
        ("x <= 0.2", (-np.inf, 0.2)),
        ("-x <= 0.2", (-0.2, np.inf)),
        ("x in [0.3, 0.7]", (0.3, 0.7)),
        ("abs(x) <= 0.2", (-0.2, 0.2)),
        ("abs(-x) <= 0.2", (-0.2, 0.2)),
        ("2*x >= 0.5", (0.25, np.inf)),
        ("x*-2 >= 0.5", (-np.inf, -0.25)),
        ("x/4 in [1, 2]", (4.0, 8.0)),
        ("1 - x >= 0.25", (-np.inf, 0.75)),
        ("1 + x - 3 >= 0.25", (2.25, np.inf)),
        ("abs(x - 0.5) <= 0.25", (0.25, 0.75)),
        ("abs(x) >= 0.2", None),
        ("x + x >= 1", None),
        ("x*x >= 1", None),
        ("1/x >= 1", None),
        ("x >= y", None),
        ("0*x >= 1", None),
    ],
)
def test_limits_solve_the_constraint_for_its_variable(text: str, limits: tuple[float, float] | None) -> None:
    solved = Constraint(text).limits
    assert (solved and (solved.low, solved.high)) == limits


def test_pickle_equality_and_hash_follow_the_text() -> None:
    constraint = Constraint("temp  in [0.3, 0.7]")
    copy = pickle.loads(pickle.dumps(constraint))
    assert copy == constraint == Constraint("temp in [0.3, 0.7]")
    assert hash(copy) == hash(constraint)
    assert copy != Constraint("temp in [0.3, 0.8]")
    np.testing.assert_array_equal(copy.margin(VALUES), constraint.margin(VALUES))


def test_the_error_survives_a_process_boundary() -> None:
    error = ConstraintSyntaxError("x >=", 4, "expected more")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


Expression = tuple[str, Callable[[dict[str, Fraction]], Fraction]]


def _join(left: Expression, symbol: str, right: Expression) -> Expression:
    meaning: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
    }
    return f"({left[0]} {symbol} {right[0]})", lambda v: meaning[symbol](left[1](v), right[1](v))


VARIABLES: list[Expression] = [("a", lambda v: v["a"]), ("b", lambda v: v["b"])]
INTEGERS = st.integers(0, 9).map(lambda i: (str(i), lambda v: Fraction(i)))
EXPRESSIONS: st.SearchStrategy[Expression] = st.recursive(
    st.sampled_from(VARIABLES) | INTEGERS,
    lambda inner: st.one_of(
        st.builds(_join, inner, st.sampled_from("+-*"), inner),
        inner.map(lambda e: (f"-{e[0]}", lambda v: -e[1](v))),
        inner.map(lambda e: (f"abs({e[0]})", lambda v: abs(e[1](v)))),
    ),
    max_leaves=8,
)
BOXES = st.tuples(st.integers(-8, 8), st.integers(0, 8)).map(lambda pair: (pair[0] / 4, (pair[0] + pair[1]) / 4))


@given(EXPRESSIONS, st.integers(-8, 8), st.integers(-8, 8))
def test_any_expression_means_what_exact_arithmetic_says(expression: Expression, a: int, b: int) -> None:
    # Quarters and small integers: floating point is exact here, so equality is too.
    values = {"a": Fraction(a, 4), "b": Fraction(b, 4)}
    margin = Constraint(f"a + {expression[0]} >= 0").margin({k: np.array([float(v)]) for k, v in values.items()})
    assert margin[0] == values["a"] + expression[1](values)


@given(EXPRESSIONS, BOXES, BOXES, st.tuples(st.floats(0, 1), st.floats(0, 1)), st.sampled_from([">= 1", "in [-1, b]"]))
def test_interval_arithmetic_encloses_every_sample(
    expression: Expression,
    a: tuple[float, float],
    b: tuple[float, float],
    share: tuple[float, float],
    relation: str,
) -> None:
    constraint = Constraint(f"a + {expression[0]} {relation}")
    low, high = constraint.bounds({"a": a, "b": b})
    point = {
        name: np.array([lower + (upper - lower) * t])
        for name, (lower, upper), t in zip(("a", "b"), (a, b), share, strict=True)
    }
    margin = constraint.margin(point)[0]
    slack = 1e-12 * max(1.0, abs(low), abs(high))
    assert low - slack <= margin <= high + slack


@pytest.mark.parametrize(
    ("text", "box", "bounds"),
    [
        ("x >= 0.5", (0, 1), (-0.5, 0.5)),
        ("x >= 0.5", (-np.inf, np.inf), (-np.inf, np.inf)),
        ("x in [0.25, 0.75]", (-np.inf, np.inf), (-np.inf, 0.25)),
        ("x in [0.25, 0.75]", (0, 0.375), (-0.25, 0.125)),
        ("x in [0.75, 0.25]", (0, 1), (-0.75, -0.25)),
        ("abs(x) <= 0.25", (-1, 0.5), (-0.75, 0.25)),
        ("abs(x) <= 0.25", (-np.inf, np.inf), (-np.inf, 0.25)),
        ("abs(x) >= 0.25", (0.5, 1), (0.25, 0.75)),
        ("2/x >= 1", (1, 4), (-0.5, 1.0)),
        ("2/x >= 1", (1, np.inf), (-1.0, 1.0)),
        ("2/x >= 1", (-1, 4), (-np.inf, np.inf)),
        ("2/x >= 1", (0, 4), (-np.inf, np.inf)),
        ("-3*x >= 0", (-1, 2), (-6.0, 3.0)),
        ("0*x >= 0", (-np.inf, np.inf), (0.0, 0.0)),
    ],
)
def test_bounds_of_a_variable_mentioned_once_are_tight(
    text: str, box: tuple[float, float], bounds: tuple[float, float]
) -> None:
    assert Constraint(text).bounds({"x": box}) == bounds
