"""Where a step would have led with other internal variables: what an agent learns about death without dying."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.batch import Batch, flatten
from persist_sb3.models.linear import LEAST_DEVIATION, RIDGE
from persist_sb3.models.spec import StateSpec
from persist_sb3.paths import locate, parse_path

Floats = NDArray[np.float64]

#: Probability with which each variable is drawn anew.
REDRAWN = 0.5

#: Least squares in a regression by least absolute deviations, and the deviation, in standard deviations of what is
#: explained, below which a row does not count for more.
ROUNDS, SMALL = 10, 0.01

#: Transitions that ``J`` is learned from, and how many for each input there must be.
ROWS, ENOUGH = 2000, 2

#: It is learned anew when there have been so many more transitions.
GROWTH = 1.5

#: A variable of which the rest of the observation leaves less than this share open is shown twice.
DOUBLE = 1e-3


class Retold(NamedTuple):
    """
    Steps as they would have been with other internal variables.

    :param observation: before the step, ``(n, ...)``
    :param next_observation: after it, ``(n, ...)``
    :param x: internal variables before it, ``(n, d)``
    :param x_next: after it, ``(n, d)``
    :param died: whether a constraint was violated after the step as it was, ``(n,)`` bool
    :param dies: whether one would have been, ``(n,)`` bool
    """

    observation: Batch
    next_observation: Batch
    x: Floats
    x_next: Floats
    died: NDArray[np.bool_]
    dies: NDArray[np.bool_]

    def ends(self, ended: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """
        :param ended: whether the episode ended by itself, ``(n,)``
        :return: whether it would have, if violations end it, ``(n,)``
        """
        return self.dies | (ended & ~self.died)


class Counterfactuals:
    """
    An agent that steps on a thorn at full health could have done so at its last. What surrounds it, what it did and
    what chance brought would have been the same; only the internal variables would have been others, and with them
    whether it survived. So every step that was survived tells of deaths (data augmentation by a locally factored
    dynamics, as in Pitis, Creager and Garg, "Counterfactual data augmentation using locally factored dynamics", NeurIPS
    2020).

    With ``x~`` in the place of ``x``, the step leads to ``x~' = x' + (x~ - x) J``. What the step owes to everything
    else, chance included, is in ``x'`` already. That is exact where the change is linear in ``x``, and the same
    everywhere: levels that are drained and filled, and those that relax towards their surroundings.

    ``J = I + d(x' - x)/dx`` is of a linear regression of the change on ``[x, o, a, o']``, the internal variables left
    out of both observations: what they show explains the change, and is not blamed on ``x``. It is a regression by
    least absolute deviations, because of what it cannot explain. An agent that eats when it is hungry gains most where
    it has least, and least squares take that for a property of hunger. What happens seldom and changes much does not
    move a median.

    It is assumed that ``x`` changes nothing else: neither what surrounds the agent and how it moves, nor the task's
    reward.

    :param spec: the environment's state and actions
    :param entries: where the observation shows each internal variable, by name
    :param learned: what :meth:`state_dict` returned of another one
    :raises ValueError: if the observation does not show every internal variable as a number
    """

    #: By how much ``x'_j`` is greater where ``x_i`` is greater by 1, in row ``i`` and column ``j``, ``(d, d)``.
    jacobian: Floats

    #: How many transitions there had been when it was learned.
    learned_from: int

    def __init__(self, spec: StateSpec, entries: Mapping[str, str], learned: Mapping[str, Any] | None = None) -> None:
        self.spec = spec
        dims, space = spec.viability.dims, spec.observation_space
        hidden = [name for name in dims if name not in entries]
        if hidden:
            raise ValueError(f"the observation does not show {', '.join(hidden)}, so nobody sees it change")
        self._entries = [locate(parse_path(entries[name])[1], space) for name in dims]
        for name, entry in zip(dims, self._entries, strict=True):
            inner = space
            for key in entry.keys:
                inner = inner[key]  # type: ignore[index]
            if not (isinstance(inner, spaces.Box) and np.issubdtype(inner.dtype, np.floating)):
                raise ValueError(f"the observation shows {name} in {inner}, which does not hold every number")
        columns = [entry.columns(space)[0] for entry in self._entries]
        self._rest = np.delete(np.arange(spec.observation_dim), columns)
        #: What the regression takes for each transition, ``p``.
        self.inputs = len(dims) + 2 * len(self._rest) + spec.action_dim
        self.jacobian = np.eye(len(dims)) if learned is None else learned["jacobian"]
        self.learned_from = 0 if learned is None else learned["learned_from"]
        self._low, self._high = spec.viability.box()

    def state_dict(self) -> dict[str, Any]:
        """
        :return: what was learned
        """
        return {"jacobian": self.jacobian, "learned_from": self.learned_from}

    def due(self, kept: int, seen: int) -> int:
        """
        Whether there are enough transitions, and enough more than when ``J`` was learned.

        :param kept: transitions at hand
        :param seen: transitions that there have been
        :return: of how many, drawn at random, to learn ``J`` now; 0 if it is not time
        """
        least = ENOUGH * self.inputs
        return min(kept, max(ROWS, least)) if kept >= least and seen >= GROWTH * self.learned_from else 0

    def read(self, observation: Batch) -> Floats:
        """
        :param observation: ``(n, ...)``
        :return: the internal variables that it shows, ``(n, d)``
        """
        return np.stack([entry.read(observation) for entry in self._entries], axis=1, dtype=np.float64)

    def write(self, observation: Batch, x: Floats) -> Batch:
        """
        :param observation: ``(n, ...)``, left as it is
        :param x: ``(n, d)``
        :return: the same, which shows these internal variables
        """
        for entry, column in zip(self._entries, x.T, strict=True):
            observation = entry.write(observation, column)
        return observation

    def learn(
        self, observation: Batch, action: NDArray[Any], next_observation: Batch, *, seen: int, rounds: int = ROUNDS
    ) -> None:
        """
        Find ``J``, anew, and from these transitions alone. There should be more of them than :attr:`inputs`.

        :param observation: before a step, ``(n, ...)``
        :param action: executed, encoded, ``(n, A)``
        :param next_observation: after it, ``(n, ...)``
        :param seen: transitions that there have been
        :param rounds: see :func:`least_deviations`
        :raises RuntimeError: if the observation shows an internal variable twice: what it shows would explain all of
            the change
        """
        x, space = self.read(observation), self.spec.observation_space
        shown = [flatten(space, batch)[:, self._rest] for batch in (observation, next_observation)]
        self._refuse_doubles(x, shown[0])
        slopes = least_deviations(np.concatenate([x, *shown, action], axis=1), self.read(next_observation) - x, rounds)
        self.jacobian, self.learned_from = np.eye(x.shape[1]) + slopes[: x.shape[1]], seen

    def _refuse_doubles(self, x: Floats, rest: NDArray[Any]) -> None:
        rest, deviation = rest - rest.mean(axis=0, dtype=np.float64), x - x.mean(axis=0)
        left = deviation - rest @ np.linalg.lstsq(rest, deviation, rcond=None)[0]
        for name, entry, double in zip(
            self.spec.viability.dims, self._entries, left.std(axis=0) < DOUBLE * deviation.std(axis=0), strict=True
        ):
            if double:
                raise RuntimeError(
                    f"the observation shows {name} in {entry.text} and follows it elsewhere, where it would stay as it "
                    "was: leave that out of the observation, or learn from no counterfactuals"
                )

    def redraw(self, x: Floats, draws: Floats) -> Floats:
        """
        Draw variables anew, each with probability :data:`REDRAWN`, uniformly between the limits; where there is none,
        up to the furthest value at hand. Where that does not satisfy all constraints ``x`` stays as it is.

        :param x: ``(n, d)``
        :param draws: of chance, uniform in ``[0, 1)``: whether, and to what, ``(2, n, d)``
        :return: ``x~``, ``(n, d)``
        """
        low = np.where(np.isfinite(self._low), self._low, x.min(axis=0))
        high = np.where(np.isfinite(self._high), self._high, x.max(axis=0))
        drawn = np.where(draws[0] < REDRAWN, low + (high - low) * draws[1], x)
        return np.where(self.spec.viability.contains(drawn)[:, None], drawn, x)

    def successor(self, x: Floats, x_next: Floats, other: Floats) -> Floats:
        """
        :param x: before a step, ``(n, d)``
        :param x_next: after it, ``(n, d)``
        :param other: ``x~``, ``(n, d)``
        :return: ``x~'``, within the variables' physical range, ``(n, d)``
        """
        viability = self.spec.viability
        return np.clip(x_next + (other - x) @ self.jacobian, viability.low, viability.high)

    def retell(self, observation: Batch, next_observation: Batch, x: Floats, x_next: Floats, draws: Floats) -> Retold:
        """
        :param observation: before a step, ``(n, ...)``, left as it is
        :param next_observation: after it, ``(n, ...)``, left as it is
        :param x: internal variables before it, ``(n, d)``
        :param x_next: after it, ``(n, d)``
        :param draws: as :meth:`redraw` takes them
        :return: the steps with variables drawn anew, ``n`` of them
        """
        other = self.redraw(x, draws)
        other_next = self.successor(x, x_next, other)
        died, dies = (~self.spec.viability.contains(end) for end in (x_next, other_next))
        seen, following = self.write(observation, other), self.write(next_observation, other_next)
        return Retold(seen, following, other, other_next, died, dies)


def least_deviations(x: Floats, y: Floats, rounds: int = ROUNDS) -> Floats:
    """
    Linear regression with an intercept by least absolute deviations: by least squares, again and again, with the
    inverse of each row's last deviation as its weight (Schlossmacher, "An iterative technique for absolute deviations
    curve fitting", JASA 1973).

    :param x: ``(n, p)``
    :param y: ``(n, g)``
    :param rounds: how often; after the first it is least squares
    :return: slopes, ``(p, g)``; 0 where ``x`` does not vary
    """
    scale = x.std(axis=0)
    varies = scale > LEAST_DEVIATION
    inputs = (x[:, varies] - x[:, varies].mean(axis=0)) / scale[varies]
    inputs = np.concatenate([inputs, np.ones((len(x), 1))], axis=1)
    ridge = RIDGE * np.eye(inputs.shape[1])
    slopes = np.zeros((x.shape[1], y.shape[1]))
    for column, target in zip(slopes.T, y.T, strict=True):
        floor = SMALL * max(float(target.std()), LEAST_DEVIATION)
        weights = np.full(len(x), 1.0 / len(x))
        for _ in range(rounds):
            weighted = inputs.T * weights
            solved = np.linalg.solve(weighted @ inputs + ridge, weighted @ target)
            weights = 1.0 / np.maximum(np.abs(target - inputs @ solved), floor)
            weights /= weights.sum()
        column[varies] = solved[:-1] / scale[varies]
    return slopes
