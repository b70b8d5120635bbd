"""The viability set: where the internal variables must stay for the agent to live."""

import copy
import difflib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from persist_sb3.constraints import RESERVED, Array, Constraint, ConstraintSyntaxError, minimum

__all__ = ["Constraint", "ConstraintSyntaxError", "LeastMargin", "ViabilitySet"]

Vector = NDArray[np.float64]


class ViabilitySet:
    """
    The set ``V`` of internal states that satisfy every constraint.

    Every method takes internal states of any leading shape, ``(..., d)``, as NumPy arrays or torch tensors, and answers
    in kind. The margins of a state do not depend on the others in its batch, to the last bit. A constraint on one
    variable (``energy >= 0.2``, ``temp in [0.3, 0.7]``, ``abs(theta) <= 0.2``) is decided exactly at its limits; one
    that computes (``energy + 0.5*integrity >= 0.4``) is decided by its sides as floating point evaluates them.

    :param constraints: inequalities on ``dims``, as :class:`Constraint` reads them
    :param dims: names of the internal variables, in the order of the last axis of ``x``
    :param mu: the setpoint, ``(d,)``; it must lie inside ``V``
    :param low: least value each variable can physically take, ``(d,)``; ``-inf`` by default
    :param high: greatest value, ``(d,)``; ``inf`` by default
    :param scale: what each margin is divided by, so that margins compare, ``(m,)``, positive, in the constraint's own
        units; by default the margin at ``mu`` (so a margin is 1 at the setpoint), or 1 without a ``mu``
    :raises ConstraintSyntaxError: if a constraint is malformed
    :raises ValueError: if a constraint names an unknown variable, cannot be satisfied (alone or with the others), or
        can never be violated within ``low`` and ``high``; if ``mu`` is not inside; if lengths differ
    """

    def __init__(
        self,
        constraints: Sequence[str],
        dims: Sequence[str],
        *,
        mu: Sequence[float] | None = None,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
    ) -> None:
        self.dims = checked_names(dims)
        self.constraints = self._parsed(constraints)
        self.low = self._vector("low", low, -math.inf)
        self.high = self._vector("high", high, math.inf)
        self.tightness = 1.0
        for name, floor, ceiling in zip(self.dims, self.low, self.high, strict=True):
            if not floor < ceiling:
                raise ValueError(f"low must be below high; for '{name}' low={floor:g} and high={ceiling:g}")
        self.mu = None if mu is None else self._vector("mu", mu)
        self._check_satisfiable()
        if self.mu is not None:
            self._check_setpoint(self.mu)
        self.scale = self._scale(scale)
        self._compile()

    def _parsed(self, constraints: Sequence[str]) -> tuple[Constraint, ...]:
        if isinstance(constraints, str):
            raise TypeError(f"constraints must be a list of strings, not one string: use [{constraints!r}]")
        parsed = tuple(Constraint(text) for text in constraints)
        if not parsed:
            raise ValueError(f"a viability set needs at least one constraint, for example '{self.dims[0]} >= 0.2'")
        for constraint in parsed:
            for name in constraint.names:
                if name not in self.dims:
                    raise ValueError(f"constraint '{constraint.text}': {unknown_name(name, self.dims)}")
        return parsed

    def _vector(self, label: str, values: Sequence[float] | None, default: float = math.nan) -> Vector:
        vector = np.full(len(self.dims), default) if values is None else np.array(values, dtype=np.float64)
        if vector.shape != (len(self.dims),):
            raise ValueError(
                f"{label} has shape {vector.shape}, but there are {len(self.dims)} internal variables: {self.dims}"
            )
        for name, value in zip(self.dims, vector, strict=True):
            if math.isnan(value):
                raise ValueError(f"{label} of '{name}' is NaN; give a number")
        vector.flags.writeable = False
        return vector

    def _check_satisfiable(self) -> None:
        physical = dict(zip(self.dims, zip(self.low.tolist(), self.high.tolist(), strict=True), strict=True))
        for constraint in self.constraints:
            least, greatest = constraint.bounds(physical)
            ranges = ", ".join(f"{name} in [{physical[name][0]:g}, {physical[name][1]:g}]" for name in constraint.names)
            if greatest < 0:
                raise ValueError(
                    f"constraint '{constraint.text}' cannot be satisfied with {ranges} (low, high): correct one of them"
                )
            if least >= 0:
                raise ValueError(
                    f"constraint '{constraint.text}' can never be violated with {ranges} (low, high; '<' and '>' count "
                    "as '<=' and '>='); remove it, or correct it"
                )
        floor, ceiling = self.box()
        for name, least, greatest in zip(self.dims, floor, ceiling, strict=True):
            if least > greatest:
                texts = [c.text for c in self.constraints if c.limits is not None and c.limits.name == name]
                raise ValueError(
                    f"the constraints on '{name}' cannot hold together: {texts} ask for at least {least:g} and at most "
                    f"{greatest:g}"
                )
        box = dict(zip(self.dims, zip(floor.tolist(), ceiling.tolist(), strict=True), strict=True))
        for constraint in self.constraints:
            if constraint.bounds(box)[1] < 0:
                raise ValueError(f"constraint '{constraint.text}' cannot hold together with the others: {self.names}")

    def _check_setpoint(self, mu: Vector) -> None:
        for name, value, floor, ceiling in zip(self.dims, mu, self.low, self.high, strict=True):
            if not (math.isfinite(value) and floor <= value <= ceiling):
                raise ValueError(f"mu of '{name}' is {value:g}, outside its range [{floor:g}, {ceiling:g}] (low, high)")
        for constraint, margin in zip(self.constraints, self._margins_at(mu), strict=True):
            if not margin >= 0:
                point = ", ".join(f"{name} = {mu[self.dims.index(name)]:g}" for name in constraint.names)
                raise ValueError(
                    f"mu lies outside the viability set: '{constraint.text}' has margin {margin:g} at {point}. Move mu "
                    "inside, or correct the constraint; both are in the variable's own unit"
                )

    def _margins_at(self, point: Vector) -> Vector:
        values = {name: point[j] for j, name in enumerate(self.dims)}
        return np.array([constraint.margin(values) for constraint in self.constraints])

    def _scale(self, scale: Sequence[float] | None) -> Vector:
        if scale is not None:
            given = np.array(scale, dtype=np.float64)
            if given.shape != (len(self.constraints),):
                raise ValueError(f"scale has shape {given.shape}, but there are {len(self.constraints)} constraints")
            for constraint, value in zip(self.constraints, given, strict=True):
                if not 0 < value < math.inf:
                    raise ValueError(f"scale of '{constraint.text}' is {value:g}; it must be positive and finite")
        elif self.mu is not None:
            given = self._margins_at(self.mu)
            for constraint, margin in zip(self.constraints, given, strict=True):
                if margin == 0:
                    raise ValueError(
                        f"mu lies on the boundary of '{constraint.text}', so its margin there (0) cannot be the scale: "
                        "move mu inside, or give scale"
                    )
        else:
            given = np.ones(len(self.constraints))
        given.flags.writeable = False
        return given

    def _compile(self) -> None:
        """
        Write the constraints on one variable as ``lower <= x[column] <= upper``, so that one pass over the whole batch
        gives their margins; the others keep their expression.
        """
        self._columns = np.zeros(len(self.constraints), dtype=np.intp)
        self._lower = np.full(len(self.constraints), -math.inf)
        self._upper = np.full(len(self.constraints), math.inf)
        self._computed: list[tuple[int, Constraint]] = []
        for i, constraint in enumerate(self.constraints):
            limits = constraint.limits
            if limits is None or not limits.exact:
                self._computed.append((i, constraint))
            else:
                self._columns[i] = self.dims.index(limits.name)
                self._lower[i], self._upper[i] = self._about_setpoint(self._columns[i], limits.low, limits.high)
        mentioned = {name for constraint in self.constraints for name in constraint.names}
        self._unmentioned = [j for j, name in enumerate(self.dims) if name not in mentioned]

    def _about_setpoint(self, column: int, *limits: float) -> tuple[float, ...]:
        if self.mu is None or self.tightness == 1.0:
            return limits
        centre = float(self.mu[column])
        return tuple(centre + (limit - centre) / self.tightness for limit in limits)

    @property
    def names(self) -> tuple[str, ...]:
        """The constraints as they were written, ``m`` of them."""
        return tuple(constraint.text for constraint in self.constraints)

    def margins(self, x: Array) -> Array:
        """
        :param x: internal states, ``(n, d)``
        :return: how far inside each constraint they are, in units of its scale, ``(n, m)``: positive inside, zero on
            the boundary, NaN where a variable it mentions is NaN
        :raises ValueError: if the last axis of ``x`` is not ``d`` long
        """
        raw: Any = self.raw_margins(x)
        margins: Array = raw / _like(self.scale, raw)
        return margins

    def raw_margins(self, x: Array) -> Array:
        """
        :param x: internal states, ``(n, d)``
        :return: the margins in the constraints' own units, ``(n, m)``
        :raises ValueError: if the last axis of ``x`` is not ``d`` long
        """
        if x.shape[-1:] != (len(self.dims),):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; its last axis must hold the {len(self.dims)} variables {self.dims}"
            )
        limited = x[..., self._columns] if isinstance(x, torch.Tensor) else x.take(self._columns, axis=-1)
        margins: Array = minimum(limited - _like(self._lower, x), _like(self._upper, x) - limited)
        if self._computed:
            if self.mu is not None and self.tightness != 1.0:
                centre = _like(self.mu, x)
                x = centre + self.tightness * (x - centre)
            values = {name: x[..., j] for j, name in enumerate(self.dims)}
            for i, constraint in self._computed:
                margins[..., i] = constraint.margin(values) / self.tightness
        return margins

    def contains(self, x: Array) -> Array:
        """
        :param x: internal states, ``(n, d)``
        :return: whether every constraint holds, ``(n,)`` bool; never for a state with a NaN
        """
        return self._inside(x, self.margins(x))

    def _inside(self, x: Array, margins: Array) -> Array:
        inside: Any = (margins >= 0).all(-1)
        for column in self._unmentioned:
            inside = inside & (x[..., column] == x[..., column])
        return inside

    def violated(self, x: Array) -> Array:
        """
        :param x: internal states, ``(n, d)``
        :return: index of the constraint with the most negative margin (the first that is NaN, if one is), ``(n,)``
            int; -1 inside
        """
        margins: Any = self.margins(x)
        # Counted from 1 and multiplied by whether it counts at all: the same arithmetic for arrays and tensors.
        worst: Array = (margins.argmin(-1) + 1) * ~self._inside(x, margins) - 1
        return worst

    def box(self) -> tuple[Vector, Vector]:
        """
        The smallest box known to enclose the set: what ``low``, ``high`` and each constraint that can be solved for a
        single variable say. Constraints on several variables are left out.

        :return: lower and upper bounds, ``(d,)`` each; infinite where a variable is unbounded
        """
        floor, ceiling = self.low.copy(), self.high.copy()
        for constraint in self.constraints:
            if constraint.limits is not None:
                name, low, high, _ = constraint.limits
                j = self.dims.index(name)
                low, high = self._about_setpoint(j, low, high)
                floor[j], ceiling[j] = max(floor[j], low), min(ceiling[j], high)
        return floor, ceiling

    def about(self, names: Sequence[str]) -> "ViabilitySet":
        """
        The set of those constraints that mention one of some variables; ``x`` keeps all of its variables.

        :param names: of internal variables
        :return: the new set; this one is unchanged
        :raises ValueError: if there is no such variable, or no constraint mentions one of them
        """
        for name in names:
            if name not in self.dims:
                raise ValueError(unknown_name(name, self.dims))
        kept = [i for i, constraint in enumerate(self.constraints) if set(constraint.names) & set(names)]
        if not kept:
            raise ValueError(f"no constraint is about {list(names)}: they are {list(self.names)}")
        narrowed = copy.copy(self)
        narrowed.constraints = tuple(self.constraints[i] for i in kept)
        narrowed.scale = self.scale[kept]
        narrowed.scale.flags.writeable = False
        narrowed._compile()
        return narrowed

    def tighten(self, k: float) -> "ViabilitySet":
        """
        The set drawn together about the setpoint, ``V_k = mu + (V - mu) / k``: its margins are
        ``margins(mu + k * (x - mu)) / k``, with the scale unchanged. ``low`` and ``high``, being physical, stay.

        :param k: above 1 narrows the set, below 1 widens it; factors multiply, so
            ``V.tighten(a).tighten(b) == V.tighten(a * b)``
        :return: the new set; this one is unchanged
        :raises ValueError: if ``k`` is not positive and finite
        :raises RuntimeError: if the set has no ``mu``
        """
        if not 0 < k < math.inf:
            raise ValueError(f"k must be positive and finite, not {k}")
        if self.mu is None:
            raise RuntimeError("a viability set without a setpoint cannot be tightened; give it mu")
        tightened = copy.copy(self)
        tightened.tightness = self.tightness * k
        tightened._compile()
        return tightened

    def slack(self, k: float) -> float:
        """
        By how much the scaled margins of ``tighten(k)`` exceed this set's, for ``k`` up to 1:
        ``(1 / k - 1) * min_j margins(mu)_j``. The margin of an affine side ``g`` about the setpoint is
        ``g(mu + k (x - mu)) / k = g(x) + (1 / k - 1) g(mu)``, so with the default scale and limits on one side of each
        variable this is exact; for other concave margins (a convex set) it is a lower bound.

        :param k: in ``(0, 1]``
        :return: at least 0
        :raises ValueError: if ``k`` is out of its range
        :raises RuntimeError: if the set has no ``mu``
        """
        if not 0 < k <= 1:
            raise ValueError(f"k must be in (0, 1], not {k}")
        if k == 1:
            return 0.0
        if self.mu is None:
            raise RuntimeError("a viability set without a setpoint cannot be widened; give it mu")
        return (1 / k - 1) * float(self.margins(self.mu).min())

    def _identity(self) -> tuple[Any, ...]:
        vectors = (None if v is None else tuple(v.tolist()) for v in (self.mu, self.low, self.high, self.scale))
        return self.constraints, self.dims, self.tightness, *vectors

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ViabilitySet) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"ViabilitySet({list(self.names)}, dims={list(self.dims)}, tightness={self.tightness:g})"


class LeastMargin:
    """
    ``viability.margins(x).min(axis=1)`` for states that always come ``n`` at a time, the same to the last bit. NumPy
    takes longer to align a few small arrays of different shapes than to compute with them: here all have one shape.

    :param viability: the set
    :param n: states in a batch
    """

    def __init__(self, viability: ViabilitySet, n: int) -> None:
        self._viability = viability
        limits = np.concatenate([viability._lower, viability._upper])
        self._columns = np.tile(viability._columns, 2)
        self._limits = np.tile(limits, (n, 1))
        # An upper limit is a lower one upside down.
        self._scale = np.tile(np.concatenate([viability.scale, -viability.scale]), (n, 1))

    def __call__(self, x: Vector) -> Vector:
        """
        :param x: internal states, ``(n, d)``
        :return: their smallest scaled margin, ``(n,)``
        """
        if self._viability._computed:
            margins: Vector = self._viability.margins(x)
        else:
            margins = x.take(self._columns, axis=1)
            margins -= self._limits
            margins /= self._scale
        least: Vector = np.minimum.reduce(margins, axis=1)
        return least


def _like(values: Vector, x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return torch.tensor(values, dtype=torch.result_type(x, 0.5), device=x.device)
    return values


def checked_names(dims: Sequence[str]) -> tuple[str, ...]:
    """
    :param dims: names of internal variables
    :return: the same, as a tuple
    :raises TypeError: if ``dims`` is one string
    :raises ValueError: if there are none, one appears twice, or one could not be written in a constraint
    """
    if isinstance(dims, str):
        raise TypeError(f"dims must be a list of names, not one string: use [{dims!r}]")
    names = tuple(dims)
    if not names:
        raise ValueError("dims is empty; name at least one internal variable")
    for name in names:
        if not (isinstance(name, str) and name.isidentifier()) or name in RESERVED:
            raise ValueError(f"{name!r} cannot name an internal variable: use letters, digits and '_', not {RESERVED}")
        if names.count(name) > 1:
            raise ValueError(f"dims names '{name}' twice: {names}")
    return names


def unknown_name(name: str, known: Sequence[str]) -> str:
    """
    :param name: what was asked for
    :param known: what there is
    :return: a sentence that says so, and names the nearest known name
    """
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
    return f"unknown internal variable '{name}'{hint}; there are {', '.join(known)}"
