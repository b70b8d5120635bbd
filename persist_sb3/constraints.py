"""Constraints on internal variables, written as inequalities: ``energy >= 0.2``, ``temp in [0.3, 0.7]``."""

import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch

from persist_sb3.grammar import GrammarError, Scanner, Token

Array = TypeVar("Array", np.ndarray, torch.Tensor)
Interval = tuple[float, float]

RESERVED = ("abs", "in")
MAX_TOKENS = 512
MAX_NESTING = 32
EVERYTHING: Interval = (-math.inf, math.inf)
TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<symbol><=|>=|[-<>+*/()\[\],])"
)


class ConstraintSyntaxError(GrammarError):
    """A constraint that does not follow the grammar of :class:`Constraint`."""

    subject = "constraint"
    advice = dict.fromkeys(("and ", "&", ",", ";"), "list two constraints instead") | {
        "or ": "all constraints must hold together",
        "=": "comparisons are >=, <=, and in [low, high]",
        "≥": "write >=",
        "≤": "write <=",
        "%": "write a number in the variable's own unit",
        ".": "write the variable's name in dims; its source says where it is",
    }


def minimum(a: Any, b: Any) -> Any:
    """
    :param a: array or tensor
    :param b: another of the same kind
    :return: the smaller of the two, entry by entry; NaN where one is NaN
    """
    return torch.minimum(a, b) if isinstance(a, torch.Tensor) else np.minimum(a, b)


def _add(a: Interval, b: Interval) -> Interval:
    return a[0] + b[0], a[1] + b[1]


def _subtract(a: Interval, b: Interval) -> Interval:
    return a[0] - b[1], a[1] - b[0]


def _corners(operation: Callable[[float, float], float], a: Interval, b: Interval) -> Interval:
    values = [operation(x, y) for x in a for y in b]
    # 0 * inf and inf / inf stand for a bound that is never reached; 0 is its limit along the other operand.
    values = [0.0 if math.isnan(value) else value for value in values]
    return min(values), max(values)


def _multiply(a: Interval, b: Interval) -> Interval:
    return _corners(operator.mul, a, b)


def _divide(a: Interval, b: Interval) -> Interval:
    return EVERYTHING if b[0] <= 0 <= b[1] else _corners(operator.truediv, a, b)


class Node(ABC):
    """An arithmetic expression over internal variables."""

    @abstractmethod
    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """
        :param values: one array or tensor a variable
        :return: the expression's value, of the same kind and shape
        """

    @abstractmethod
    def interval(self, box: Mapping[str, Interval]) -> Interval:
        """
        :param box: lower and upper bound of each variable
        :return: bounds of the expression's value over the box, by interval arithmetic
        """


@dataclass(frozen=True)
class Number(Node):
    """A constant."""

    value: float

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        return self.value

    def interval(self, box: Mapping[str, Interval]) -> Interval:
        return self.value, self.value


@dataclass(frozen=True)
class Variable(Node):
    """An internal variable."""

    name: str

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        return values[self.name]

    def interval(self, box: Mapping[str, Interval]) -> Interval:
        return box.get(self.name, EVERYTHING)


@dataclass(frozen=True)
class Negated(Node):
    """``-inner``."""

    inner: Node

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        return -self.inner.evaluate(values)

    def interval(self, box: Mapping[str, Interval]) -> Interval:
        low, high = self.inner.interval(box)
        return -high, -low


@dataclass(frozen=True)
class Absolute(Node):
    """``abs(inner)``."""

    inner: Node

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        return abs(self.inner.evaluate(values))

    def interval(self, box: Mapping[str, Interval]) -> Interval:
        low, high = self.inner.interval(box)
        return max(0.0, low, -high), max(-low, high)


@dataclass(frozen=True)
class Binary(Node):
    """Two expressions joined by ``+ - * /``."""

    symbol: str
    left: Node
    right: Node

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        return OPERATIONS[self.symbol][0](self.left.evaluate(values), self.right.evaluate(values))

    def interval(self, box: Mapping[str, Interval]) -> Interval:
        return OPERATIONS[self.symbol][1](self.left.interval(box), self.right.interval(box))


MINUS_INFINITY, INFINITY = Number(-math.inf), Number(math.inf)
OPERATIONS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Interval, Interval], Interval]]] = {
    "+": (operator.add, _add),
    "-": (operator.sub, _subtract),
    "*": (operator.mul, _multiply),
    "/": (operator.truediv, _divide),
}


class Relation(NamedTuple):
    """``lower <= value <= upper``; a side that is not limited is infinite."""

    lower: Node
    value: Node
    upper: Node


class Limits(NamedTuple):
    """``low <= name <= high``; ``exact`` if no rounding was needed to solve the constraint for the variable."""

    name: str
    low: float
    high: float
    exact: bool


class _Parser:
    """
    Recursive descent, one method a rule::

        constraint := sum compare sum [compare sum] | sum "in" "[" sum "," sum "]"
        sum        := product {("+" | "-") product}
        product    := signed {("*" | "/") signed}
        signed     := ("+" | "-") signed | atom
        atom       := NUMBER | NAME | "(" sum ")" | "abs" "(" sum ")"
    """

    def __init__(self, text: str) -> None:
        self.scanner = Scanner(text, TOKEN, ConstraintSyntaxError)
        self.names: list[str] = []
        self.nesting = 0
        if len(self.scanner.tokens) > MAX_TOKENS:
            self._fail(self.scanner.tokens[MAX_TOKENS], f"longer than {MAX_TOKENS} symbols; split it")

    def _fail(self, token: Token, problem: str) -> NoReturn:
        raise ConstraintSyntaxError(self.scanner.text, token.column, problem)

    def constraint(self) -> Relation:
        left = self.sum()
        if token := self.scanner.take("in"):
            self.scanner.expect("[")
            lower = self.sum()
            self.scanner.expect(",")
            upper = self.sum()
            self.scanner.expect("]")
            relation = Relation(lower, left, upper)
            self._must_vary(token, lower, left)
            self._must_vary(token, left, upper)
        elif token := self.scanner.take("<=", "<", ">=", ">"):
            middle = self.sum()
            self._must_vary(token, left, middle)
            rising = token.text[0] == "<"
            if second := self.scanner.take("<=", "<", ">=", ">"):
                if (second.text[0] == "<") != rising:
                    self._fail(second, "both comparisons of a chain must point the same way")
                right = self.sum()
                self._must_vary(second, middle, right)
                relation = Relation(left, middle, right) if rising else Relation(right, middle, left)
            elif isinstance(left, Number):
                relation = Relation(left, middle, INFINITY) if rising else Relation(MINUS_INFINITY, middle, left)
            else:
                relation = Relation(MINUS_INFINITY, left, middle) if rising else Relation(middle, left, INFINITY)
        else:
            self.scanner.fail("an operator, a comparison (>=, <=, >, <) or 'in [low, high]'")
        if self.scanner.next.kind != "end":
            self.scanner.fail("an operator or the end")
        return relation

    def _must_vary(self, comparison: Token, left: Node, right: Node) -> None:
        if isinstance(left, Number) and isinstance(right, Number):
            self._fail(comparison, "this compares two constants; name an internal variable")

    def sum(self) -> Node:
        return self._left_to_right(self.product, "+", "-")

    def product(self) -> Node:
        return self._left_to_right(self.signed, "*", "/")

    def _left_to_right(self, operand: Callable[[], Node], *symbols: str) -> Node:
        node = operand()
        while token := self.scanner.take(*symbols):
            start = self.scanner.next
            right = operand()
            if token.text == "/" and right == Number(0.0):
                self._fail(start, "division by zero")
            node = Binary(token.text, node, right)
            if isinstance(node.left, Number) and isinstance(right, Number):
                node = self._number(token, node.evaluate({}))
        return node

    def signed(self) -> Node:
        sign = self.scanner.take("+", "-")
        if sign is None:
            return self.atom()
        inner = self._nested(sign, self.signed)
        if sign.text == "+":
            return inner
        return Number(-inner.value) if isinstance(inner, Number) else Negated(inner)

    def atom(self) -> Node:
        if token := self.scanner.take_kind("number"):
            return self._number(token, float(token.text))
        if token := self.scanner.take("("):
            return self._closed(token)
        if token := self.scanner.take("abs"):
            self.scanner.expect("(")
            inner = self._closed(token)
            return Number(abs(inner.value)) if isinstance(inner, Number) else Absolute(inner)
        if self.scanner.next.kind != "name" or self.scanner.next.text in RESERVED:
            self.scanner.fail("a number, a variable, '(' or abs(...)")
        token = self.scanner.advance()
        if self.scanner.next.text == "(":
            self._fail(token, f"unknown function '{token.text}'; the only one is abs")
        if token.text not in self.names:
            self.names.append(token.text)
        return Variable(token.text)

    def _closed(self, opening: Token) -> Node:
        inner = self._nested(opening, self.sum)
        self.scanner.expect(")")
        return inner

    def _nested(self, opening: Token, rule: Callable[[], Node]) -> Node:
        if self.nesting == MAX_NESTING:
            self._fail(opening, f"nested more than {MAX_NESTING} deep; simplify it")
        self.nesting += 1
        node = rule()
        self.nesting -= 1
        return node

    def _number(self, token: Token, value: float) -> Number:
        if not math.isfinite(value):
            self._fail(token, "this number is too large for a float")
        return Number(value)


def _solve(relation: Relation) -> Limits | None:
    """
    Solve ``lower <= value <= upper`` for its variable, undoing one operation after another.

    :param relation: the constraint
    :return: the variable's limits; None unless both sides are numbers and ``value`` is linear in one mention of one
        variable, or the absolute value of such a term from above
    """
    lower, node, upper = relation
    if not (isinstance(lower, Number) and isinstance(upper, Number)):
        return None
    low, high, exact = lower.value, upper.value, True
    while not isinstance(node, Variable):
        match node:
            case Negated(inner):
                low, high, node = -high, -low, inner
            case Absolute(inner) if low == -math.inf:
                low, node = -high, inner
            case Binary("+", inner, Number(number)) | Binary("+", Number(number), inner):
                low, high, node, exact = low - number, high - number, inner, False
            case Binary("-", inner, Number(number)):
                low, high, node, exact = low + number, high + number, inner, False
            case Binary("-", Number(number), inner):
                low, high, node, exact = number - high, number - low, inner, False
            case Binary("*", inner, Number(number)) | Binary("*", Number(number), inner) if number != 0:
                low, high, node, exact = *sorted((low / number, high / number)), inner, False
            case Binary("/", inner, Number(number)):
                low, high, node, exact = *sorted((low * number, high * number)), inner, False
            case _:
                return None
    return Limits(node.name, low, high, exact)


class Constraint:
    """
    One inequality on internal variables.

    Written as ``energy >= 0.2``, ``temp in [0.3, 0.7]``, ``0.3 <= temp <= 0.7``, ``abs(theta) <= 0.2`` or
    ``energy + 0.5*integrity >= 0.4``: sums, products, quotients, ``abs``, parentheses, numbers, and variables named as
    Python names identifiers. ``>`` and ``<`` are read as ``>=`` and ``<=``: the set of what is allowed is closed.

    The margin of ``lower <= value <= upper`` is ``min(value - lower, upper - value)``, in the units of ``value``.
    The sign of a floating-point difference is exact, so the margin is >= 0 where and only where the inequality holds
    of the evaluated sides.

    :param text: the inequality; runs of white space count as one space
    :raises ConstraintSyntaxError: if it is malformed
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"a constraint is a string such as 'energy >= 0.2', not {text!r}")
        self.text = " ".join(text.split())
        parser = _Parser(self.text)
        self._relation = parser.constraint()
        self.names = tuple(parser.names)
        self.limits = _solve(self._relation)

    def margin(self, values: Mapping[str, Array]) -> Array:
        """
        :param values: one array or tensor a variable, all of the same shape
        :return: how far inside the constraint each entry is: positive inside, zero on the boundary, the same shape
        """
        lower, value, upper = (node.evaluate(values) for node in self._relation)
        margin: Array = minimum(value - lower, upper - value)
        return margin

    def bounds(self, box: Mapping[str, Interval]) -> Interval:
        """
        Bounds of the margin, by interval arithmetic: never too narrow (but for rounding), and tight if each variable
        is mentioned once.

        :param box: lower and upper bound of each variable; a variable that is not in it is unbounded
        :return: lower and upper bound
        """
        lower, value, upper = (node.interval(box) for node in self._relation)
        above, below = _subtract(value, lower), _subtract(upper, value)
        # The smaller of two distances is at most half of what lies between the limits.
        half_width = (upper[1] - lower[0]) / 2
        return min(above[0], below[0]), min(above[1], below[1], half_width)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constraint) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[type["Constraint"], tuple[str]]:
        return Constraint, (self.text,)

    def __repr__(self) -> str:
        return f"Constraint({self.text!r})"
