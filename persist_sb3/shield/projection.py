"""The nearest action that passes: the search for ``argmin |a' - a|`` over ``value(a') >= threshold`` in a box."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Projection = Literal["cem", "gradient"]
Value = Callable[[Floats], Floats]
Slope = Callable[[Floats], tuple[Floats, Floats]]

#: Where each round tries the segment from the proposed action to the best one so far: the stretch of it that passes is
#: at least halved, down to its last part in 256.
LINE = 1.0 - 0.5 ** np.arange(1, 9, dtype=np.float32)[:, None]

#: Share of a round's samples that the next round's are drawn like.
ELITE = 0.25

#: Least spread of samples, as a share of the distance that is left to the best action so far.
SPREAD = 0.1

#: How far inside the threshold the linearised search aims: where the value is concave, its steps end just outside.
INSIDE = 0.01


class Search:
    """
    The best action found so far for each of ``r`` refused ones: the nearest that passes, or else the one of the
    greatest value. Actions lie in ``[-1, 1]``; values that are NaN pass nowhere.

    :param value: values actions, ``(r, k, A)`` to ``(r, k)``
    :param proposed: the refused actions, ``(r, A)``
    :param safest: actions likely to pass, ``(r, A)``
    :param threshold: least value that passes: one for all, or ``(r,)``
    """

    def __init__(self, value: Value, proposed: Floats, safest: Floats, threshold: float | Floats) -> None:
        self._value = value
        self.proposed = proposed
        #: ``(r, 1)``
        self.threshold = np.broadcast_to(threshold, len(proposed))[:, None]
        # What does not pass counts as farther away than anything in the box.
        self._far = 2.0 * np.sqrt(proposed.shape[1]) + 1.0
        self.best = proposed
        self._cost = np.full(len(proposed), np.inf, dtype=np.float32)
        self.offer(np.stack([safest, proposed], axis=1))

    @property
    def gap(self) -> Floats:
        """Distance from the proposed to the best action, ``(r,)``."""
        gap: Floats = np.linalg.norm(self.best - self.proposed, axis=1)
        return gap

    def offer(self, actions: Floats) -> Floats:
        """
        :param actions: to try, ``(r, k, A)``
        :return: what each costs: the least is the best, ``(r, k)``
        """
        value = self._value(actions)
        away = np.linalg.norm(actions - self.proposed[:, None], axis=2)
        cost = np.where(value >= self.threshold, away, self._far + self.threshold - value)
        cost = np.where(np.isnan(value), np.float32(np.inf), cost).astype(np.float32)
        rows = np.arange(len(actions))
        least = cost.argmin(axis=1)
        better = cost[rows, least] < self._cost
        self.best = np.where(better[:, None], actions[rows, least], self.best)
        self._cost = np.where(better, cost[rows, least], self._cost)
        return cost

    def line(self) -> Floats:
        """
        :return: actions between the proposed and the best one, ``(r, 8, A)``
        """
        line: Floats = self.proposed[:, None] + LINE * (self.best - self.proposed)[:, None]
        return line


def cem(search: Search, noise: Floats) -> Floats:
    """
    The cross-entropy method (Rubinstein, 1999): every round draws its samples about the best action so far, spread as
    those of the round before that came nearest to passing, or were nearest and passed.

    :param search: what is looked for
    :param noise: standard normal, one slice a round, ``(rounds, r, k, A)``
    :return: the best action found, ``(r, A)``
    """
    elite = max(1, round(ELITE * noise.shape[2]))
    # Clipped to the box, half the samples of a component would lie at its limits, where safe actions often do.
    centre, spread = np.zeros_like(search.best), np.full_like(search.best, 1.5)
    for normal in noise:
        samples = (centre[:, None] + spread[:, None] * normal).clip(-1.0, 1.0)
        cost = search.offer(np.concatenate([samples, search.line()], axis=1))[:, : samples.shape[1]]
        chosen = np.take_along_axis(samples, cost.argsort(axis=1)[:, :elite, None], axis=1)
        centre = search.best
        spread = np.sqrt(np.square(chosen - centre[:, None]).mean(axis=1)).clip(max=search.gap[:, None])
        spread = np.maximum(spread, SPREAD * search.gap[:, None])
    return search.best


def gradient(search: Search, slope: Slope, rounds: int) -> Floats:
    """
    Sequential linearisation: every round replaces the constraint by its tangent, and projects onto that (one such step
    is the safety layer of Dalal et al., "Safe exploration in continuous action spaces", 2018). One sequence of points
    begins at the proposed action, and one at the best known.

    :param search: what is looked for
    :param slope: values of actions and their gradients, ``(r, k, A)`` to ``(r, k)`` and ``(r, k, A)``
    :param rounds: steps of each sequence
    :return: the best action found, ``(r, A)``
    """
    points = np.stack([search.proposed, search.best], axis=1)
    for _ in range(rounds):
        value, direction = slope(points)
        start = np.broadcast_to(search.proposed[:, None], points.shape)
        needed = search.threshold + INSIDE - value + np.sum(direction * (points - start), axis=2)
        points = onto_halfspace(start, direction, needed)
        search.offer(np.concatenate([points, search.line()], axis=1))
    return search.best


def onto_halfspace(action: NDArray[Any], direction: NDArray[Any], needed: NDArray[Any]) -> NDArray[Any]:
    """
    The projection onto ``{a' in [-1, 1]^A : direction . (a' - action) >= needed}``. It is ``action + l * direction``,
    clipped, for the least ``l >= 0`` that reaches it; each component gains in proportion to ``l`` until it meets its
    limit, so ``l`` is found by sorting the limits.

    :param action: in ``[-1, 1]``, ``(..., A)``
    :param direction: ``(..., A)``
    :param needed: ``(...)``
    :return: the nearest point; where there is none, that which comes nearest to what is needed, ``(..., A)``
    """
    room = np.where(direction > 0.0, 1.0 - action, 1.0 + action)
    size = np.abs(direction)
    limit = np.divide(room, size, out=np.zeros_like(room), where=size > 0.0)
    order = limit.argsort(axis=-1)
    limit = np.take_along_axis(limit, order, axis=-1)
    rate = np.take_along_axis(np.square(size), order, axis=-1)
    gained = np.cumsum(rate * limit, axis=-1) - rate * limit
    rates = np.flip(np.cumsum(np.flip(rate, axis=-1), axis=-1), axis=-1)
    # Steps that would do if none of the limits from here on were met first; the first of them that keeps its word.
    steps = np.divide(needed[..., None] - gained, rates, out=np.full_like(rates, np.inf), where=rates > 0.0)
    holds = steps <= limit
    first = holds.argmax(axis=-1)[..., None]
    step = np.where(holds.any(axis=-1, keepdims=True), np.take_along_axis(steps, first, axis=-1), limit[..., -1:])
    moved: NDArray[Any] = (action + np.maximum(step, 0.0) * direction).clip(-1.0, 1.0)
    return moved
