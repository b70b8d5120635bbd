"""Plans ahead with models: the course of action that stays within the limits, and gets where it should."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from persist_sb3.batch import Batch, unflatten
from persist_sb3.draws import Draws, hash_rows
from persist_sb3.models.belief import BeliefColumns
from persist_sb3.models.imagination import Dynamics, RecurrentDynamics, Rollout
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.shield.criteria import passes
from persist_sb3.shield.decision import NONE
from persist_sb3.shield.lookahead import Function, find_dynamics, foreseeing
from persist_sb3.shield.rollouts import UNFORESEEABLE, check_search
from persist_sb3.streams import GOLDEN, Streams, splitmix64
from persist_sb3.viability import ViabilitySet

Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]

#: Worth of a state: takes observations and internal variables, in batches of ``r``, and returns ``(r,)``.
Progress = Callable[[Batch, NDArray[Any]], NDArray[Any]]

#: Least margin that the logarithm is taken of.
LEAST = 1e-3

#: How much the end of a course counts, in steps.
END_WEIGHT = 5.0

#: Progress counts less the later it is made: a plan made anew at each step would put it off for ever.
DISCOUNT = 0.95

#: What a step costs before the target is reached, in the unit of the distance to it.
STEP_COST = 1.0

#: So many states are told apart between the least and the greatest value that a number takes in a beam.
LEVELS = 256

#: Share of a round's samples that the next round's are drawn like, and the least deviation of these.
ELITE, SPREAD = 0.125, 0.05


class Critic(Protocol):
    """Knows how far inside its limits an agent can stay, as a viability critic does."""

    def viability(self, state: Floats) -> Floats:
        """
        :param state: ``(r, D)``
        :return: the least scaled margin from there on, if the agent does its best, ``(r,)``
        """


@dataclass(frozen=True)
class Plan:
    """
    The best course found in each of ``n`` states.

    :param action: what to do first, in the units of the action space, ``(n, ...)``
    :param course: encoded actions of all steps, ``(n, h, A)``
    :param feasible: whether enough of its futures stay inside the limits and end where that can go on, ``(n,)``
    :param reached: share of its futures that reach the target, ``(n,)``; NaN without a target
    :param score: what the course is worth, averaged over its futures, ``(n,)``
    :param margin: least scaled margin of its futures, value at the end included, averaged, ``(n,)``; NaN if a model
        failed
    """

    action: NDArray[Any]
    course: Floats
    feasible: Bools
    reached: Floats
    score: Floats
    margin: Floats


class Planner(Protocol):
    """Plans in many states at once."""

    def forget(self, slots: Ints) -> None:
        """
        :param slots: environments in which an episode begins, so that their last plans are of no use, ``(k,)``
        """

    def plan(self, state: Floats, slots: Ints) -> Plan:
        """
        :param state: ``(n, D)``
        :param slots: environments that these are the states of, ``(n,)``
        :return: the best courses
        """


@dataclass(frozen=True)
class Planning:
    """
    Model predictive control with a reach-avoid objective: of all courses of ``horizon`` actions, one

    - that is feasible: in a share ``conf`` of its futures no margin becomes negative, and the state at the end is
      valued at ``threshold`` or more by the viability critic, if there is one (a terminal set from which one can go on
      for ever, as model predictive control asks for: Mayne et al., "Constrained model predictive control: stability and
      optimality", Automatica, 2000);
    - and among these the one worth most. With a ``target`` that is the course that gets there soonest, the reach-avoid
      problem (Hsu et al., "Safety and liveness guarantees through reach-avoid reinforcement learning", RSS 2021):
      every step before costs 1 and the distance to the target, the steps after it nothing. Without one it is a log
      barrier on the margins, which keeps to the middle of the limits (Boyd & Vandenberghe, Convex Optimization, 2004,
      11.2), and at the end ``5`` times that of the critic's value, or of the margins where there is no critic. Either
      way ``progress`` is added, ``0.95^t`` times the worth of the state after step ``t``.

    Where no course is feasible, it is the one whose futures stay inside longest and then break least. Only the first
    action is meant to be executed, and the next step to be planned anew.

    :param target: constraints on internal variables, such as ``["energy >= 0.8"]``, all of which hold in the target
    :param horizon: steps planned, ``h``
    :param conf: share of futures that must be safe, in ``(0, 1]``
    :param threshold: least value at the end, in scaled margins
    :param rollouts: futures of each course; each is imagined by one network of the ensembles
    :param chance: whether chance is drawn in imagination; else everything takes its likeliest course
    :param width: courses that the beam keeps at each step (enumerable actions)
    :param samples: courses drawn in each round (Box actions)
    :param rounds: of drawing (Box actions)
    :param progress: what a state is worth besides
    :raises ValueError: if a parameter is out of its range
    """

    target: Sequence[str] | None = None
    horizon: int = 8
    conf: float = 0.9
    threshold: float = 0.2
    rollouts: int = 5
    chance: bool = True
    width: int = 16
    samples: int = 64
    rounds: int = 4
    progress: Progress | None = None

    def __post_init__(self) -> None:
        check_search(self.conf, self.horizon, self.rollouts, "probability")
        if self.target is not None and (isinstance(self.target, str) or not self.target):
            raise ValueError(f"target={self.target!r} must be a list of constraints, or left out")
        if not (self.progress is None or callable(self.progress)):
            raise ValueError(f"progress={self.progress!r} must be a function of observations and internal variables")
        for name in ("width", "samples", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not np.isfinite(self.threshold):
            raise ValueError(f"threshold={self.threshold} must be a finite number")

    def target_set(self, spec: StateSpec) -> ViabilitySet | None:
        """
        :param spec: the environment's state and actions
        :return: the target, with margins in the constraints' own units; None without one
        :raises ValueError: if it is none of the environment's
        """
        if self.target is None:
            return None
        viability = spec.viability
        return ViabilitySet(self.target, viability.dims, low=viability.low.tolist(), high=viability.high.tolist())

    def planner(
        self,
        spec: StateSpec,
        models: Mapping[str, Any],
        streams: Streams,
        dynamics: Function | Dynamics | None = None,
        belief: BeliefColumns | None = None,
    ) -> "Planner":
        """
        :param spec: the environment's state and actions
        :param models: by name: ``world_model`` and (unless it predicts the whole state) ``internal_model``, if the
            dynamics are not known; and ``viability``, if the end is to be valued
        :param streams: what samples are drawn from, one an environment
        :param dynamics: known dynamics, see :class:`~persist_sb3.shield.lookahead.LookAhead`
        :param belief: where the observation shows a belief about hidden variables. Then each future begins with a
            sample of it, the same for all courses of a state; where there is one future, or chance is not drawn, with
            the state as it is given
        :return: the planner: a beam over enumerable actions, the cross-entropy method over Box actions
        :raises ValueError: if there is no world model, or the target is none of the environment's
        """
        missing = [name for name in foreseeing(dynamics, models) if name not in models]
        if missing:
            raise ValueError(
                f"planning needs {', '.join(map(repr, missing))} or known dynamics, and there are {sorted(models)}"
            )
        imagination = Imagination(spec, find_dynamics(spec, dynamics, models), models.get("viability"), self, belief)
        return CrossEntropy(imagination, streams) if spec.continuous else Beam(imagination)


@dataclass(frozen=True)
class Courses:
    """
    What has come of ``c`` courses of action in each of ``n`` states, in ``p`` futures each.

    :param state: where they are, ``(n, c, p, D)``
    :param least: least scaled margin so far, ``(n, c, p)``; :data:`UNFORESEEABLE` if a model failed
    :param broken: at which step it became negative, :data:`NONE` if it did not, ``(n, c, p)``
    :param reached: whether the target has been reached, ``(n, c, p)``
    :param gained: what they have been worth so far, ``(n, c, p)``
    :param rollout: remembers how they have gone, a row a future; None if the dynamics need no memory
    """

    state: Floats
    least: Floats
    broken: Ints
    reached: Bools
    gained: Floats
    rollout: Rollout | None

    def take(self, chosen: Ints) -> "Courses":
        """
        :param chosen: courses of each state, ``(n, b)``
        :return: these
        """
        rows, rollout = np.arange(len(chosen))[:, None], self.rollout
        if rollout is not None:
            numbers = np.arange(self.least.size).reshape(self.least.shape)
            rollout = rollout.take(numbers[rows, chosen].reshape(-1))
        return Courses(
            self.state[rows, chosen],
            self.least[rows, chosen],
            self.broken[rows, chosen],
            self.reached[rows, chosen],
            self.gained[rows, chosen],
            rollout,
        )


@dataclass(frozen=True)
class Outlook:
    """
    How ``c`` courses of each of ``n`` states compare; the parameters of :class:`Plan`, ``(n, c)`` each.

    :param order: the courses from the best to the worst, ``(n, c)``
    """

    feasible: Bools
    reached: Floats
    score: Floats
    margin: Floats
    order: Ints


class Imagination:
    """
    Advances and compares courses of action, all of all states in one call of the dynamics a step. Chance is drawn by a
    hash of the state that is planned in: all its courses meet the same, whoever else is planned for.

    :param spec: the environment's state and actions
    :param dynamics: what becomes of a state
    :param critic: values the end; None leaves that to the margins
    :param planning: the parameters
    :param belief: see :meth:`Planning.planner`
    :raises ValueError: if the target is none of the environment's
    """

    def __init__(
        self,
        spec: StateSpec,
        dynamics: Dynamics,
        critic: Critic | None,
        planning: Planning,
        belief: BeliefColumns | None = None,
    ) -> None:
        self.spec = spec
        self.planning = planning
        self._dynamics = dynamics
        self._critic = critic
        self._target = planning.target_set(spec)
        self._belief = belief if planning.chance and planning.rollouts > 1 else None

    def begin(self, state: Floats, count: int = 1) -> Courses:
        """
        :param state: ``(n, D)``
        :param count: courses of each, ``c``
        :return: courses that have not begun
        """
        n, p, size = len(state), self.planning.rollouts, state.shape[1]
        shape = n, count, p
        futures = np.repeat(state, p, axis=0)
        if self._belief is not None:
            futures = self._belief.sample(futures, Draws.split(hash_rows(state), p))
        states = np.broadcast_to(futures.reshape(n, 1, p, size), (*shape, size))
        dynamics, rollout = self._dynamics, None
        if isinstance(dynamics, RecurrentDynamics):
            rollout = dynamics.begin(states.reshape(-1, size))
        return Courses(
            states,
            np.full(shape, np.inf, dtype=np.float32),
            np.full(shape, NONE),
            np.zeros(shape, dtype=bool),
            np.zeros(shape, dtype=np.float32),
            rollout,
        )

    def advance(self, courses: Courses, action: Floats, key: NDArray[np.uint64], step: int) -> Courses:
        """
        :param courses: of ``n`` states, ``c`` each. Their memory goes on: take a copy of what is to be advanced again
        :param action: encoded, ``(n, c, A)``
        :param key: what chance is drawn by, ``(n,)``
        :param step: which one this is, from 1
        :return: the courses after it
        """
        shape, planning, spec = courses.least.shape, self.planning, self.spec
        n, c, p = shape
        rows = n * c * p
        lane = splitmix64(key + np.array([step], dtype=np.uint64) * GOLDEN)
        noise = Draws.split(np.repeat(lane, c), p) if planning.chance else None
        members = np.tile(np.arange(p) % self._dynamics.members, n * c)
        actions = np.repeat(action.reshape(n * c, -1), p, axis=0)
        dynamics = self._dynamics if courses.rollout is None else courses.rollout
        state = dynamics.step(courses.state.reshape(rows, -1), actions, members, noise)
        observation, x = np.split(state, [spec.observation_dim], axis=1)
        margins = np.nan_to_num(spec.viability.margins(x), nan=UNFORESEEABLE)
        margin = margins.min(axis=1).reshape(shape).astype(np.float32)
        going = courses.broken == NONE
        # Nothing that happens after a constraint has broken counts.
        least = np.where(going, np.minimum(courses.least, margin), courses.least)
        broken = np.where(going & (margin < 0.0), step, courses.broken)
        reached = courses.reached
        worth: NDArray[Any]
        if self._target is None:
            worth = _barrier(margins).sum(axis=1).reshape(shape)
        else:
            short = -np.nan_to_num(self._target.margins(x), nan=UNFORESEEABLE).min(axis=1).reshape(shape)
            reached = reached | ((short <= 0.0) & (broken == NONE))
            worth = np.where(reached, 0.0, -STEP_COST - short)
        if planning.progress is not None:
            more = planning.progress(unflatten(spec.observation_space, observation), x)
            worth = worth + DISCOUNT ** (step - 1) * np.reshape(more, shape)
        gained = (courses.gained + worth).astype(np.float32)
        return Courses(state.reshape(*shape, -1), least, broken, reached, gained, courses.rollout)

    def compare(self, courses: Courses) -> Outlook:
        """
        :param courses: as they are after some steps; valued as if they ended there
        :return: how they compare
        """
        planning, shape = self.planning, courses.least.shape
        state = courses.state.reshape(-1, courses.state.shape[-1])
        slack = least = courses.least
        value = None
        if self._critic is not None:
            value = np.nan_to_num(self._critic.viability(state), nan=UNFORESEEABLE).reshape(shape)
            slack = np.minimum(least, value - planning.threshold)
            least = np.where(courses.broken == NONE, np.minimum(least, value), least)
        score = (courses.gained + self._end(state, value).reshape(shape)).mean(axis=2, dtype=np.float32)
        feasible = passes(slack.reshape(-1, shape[2]), "probability", planning.conf).reshape(shape[:2])
        cut = np.where(courses.broken == NONE, 0.0, 1.0 - courses.broken / planning.horizon)
        # Nothing is imagined beyond a break: without the cut, the course that breaks first would seem to break least.
        closeness = (np.minimum(slack, 0.0) - cut).mean(axis=2)
        rank = np.where(feasible, np.nan_to_num(score, nan=-np.inf), closeness)
        order = np.lexsort((rank, feasible))[:, ::-1]
        margin = np.where((least == UNFORESEEABLE).any(axis=2), np.nan, least.mean(axis=2))
        reached = np.full(shape[:2], np.nan) if self._target is None else courses.reached.mean(axis=2)
        return Outlook(feasible, reached, score, margin, order)

    def _end(self, state: Floats, value: Floats | None) -> NDArray[Any]:
        """
        :param state: where courses end, ``(r, D)``
        :param value: the critic's; None without one
        :return: what the end is worth, ``(r,)``
        """
        if self._target is not None:
            return np.zeros(len(state))
        if value is not None:
            return END_WEIGHT * _barrier(value)
        return END_WEIGHT * _barrier(self.spec.viability.margins(state[:, self.spec.observation_dim :])).sum(axis=1)

    @staticmethod
    def plan(outlook: Outlook, action: NDArray[Any], course: Floats) -> Plan:
        """
        :param outlook: of the courses
        :param action: the first action of the best of them, ``(n, ...)``
        :param course: encoded actions of the best, ``(n, h, A)``
        :return: the plan
        """
        best = outlook.order[:, :1]
        values = (
            np.take_along_axis(getattr(outlook, name), best, axis=1)[:, 0]
            for name in ("feasible", "reached", "score", "margin")
        )
        return Plan(action, course, *values)


class Beam:
    """
    Beam search over enumerable actions: at each step every action of every course that was kept is tried, and the best
    ``width`` are kept. Of courses that have come to the same states only the best is, lest orders of the same actions
    fill the beam. A beam of ``k^(h - 1)`` courses or more finds the best of all.

    :param imagination: advances and compares courses
    """

    def __init__(self, imagination: Imagination) -> None:
        self._imagination = imagination
        self._actions = imagination.spec.actions
        self._encoded = imagination.spec.encode_action(self._actions)

    def forget(self, slots: Ints) -> None:
        """Nothing is kept."""

    def plan(self, state: Floats, slots: Ints) -> Plan:
        """See :meth:`Planner.plan`."""
        imagination, k, n = self._imagination, len(self._encoded), len(state)
        key = hash_rows(state)
        courses = imagination.begin(state)
        done = np.empty((n, 1, 0), dtype=np.intp)
        for step in range(1, imagination.planning.horizon + 1):
            kept = done.shape[1]
            branch, action = np.divmod(np.arange(kept * k), k)
            every = np.broadcast_to(branch, (n, kept * k))
            courses = imagination.advance(
                courses.take(every),
                np.broadcast_to(self._encoded[action], (n, *self._encoded[action].shape)),
                key,
                step,
            )
            done = np.concatenate([done[:, branch], np.broadcast_to(action[:, None], (n, kept * k, 1))], axis=2)
            outlook = imagination.compare(courses)
            if step < imagination.planning.horizon:
                chosen = _distinct(courses, outlook.order)[:, : imagination.planning.width]
                courses, done = courses.take(chosen), np.take_along_axis(done, chosen[:, :, None], axis=1)
        best = np.take_along_axis(done, outlook.order[:, :1, None], axis=1)[:, 0]
        return imagination.plan(outlook, self._actions[best[:, 0]], self._encoded[best])


class CrossEntropy:
    """
    The cross-entropy method over courses of Box actions (Rubinstein, 1999; in model predictive control: Chua et al.,
    PETS, NeurIPS 2018). The first round is drawn about what is left of the last plan of the environment. Half of the
    samples hold one deviation throughout, since white noise averages out over a course, and to brake is to hold on.

    :param imagination: advances and compares courses
    :param streams: what samples are drawn from, one an environment
    """

    def __init__(self, imagination: Imagination, streams: Streams) -> None:
        self._imagination = imagination
        self._streams = streams
        self._last: dict[int, Floats] = {}

    def plan(self, state: Floats, slots: Ints) -> Plan:
        """See :meth:`Planner.plan`."""
        imagination, planning, spec = self._imagination, self._imagination.planning, self._imagination.spec
        n, h, c, size = len(state), planning.horizon, planning.samples, spec.action_dim
        key = hash_rows(state)
        fresh = np.zeros((h, size), dtype=np.float32)
        best = np.stack([self._last.get(slot, fresh) for slot in slots.tolist()])
        centre, spread = best, np.ones((n, h, size), dtype=np.float32)
        elite = max(1, round(ELITE * c))
        for _ in range(planning.rounds):
            noise = self._streams.normal(slots, c * h * size).astype(np.float32).reshape(n, c, h, size)
            noise[:, ::2] = noise[:, ::2, :1]
            courses = np.concatenate(
                [best[:, None], (centre[:, None] + spread[:, None] * noise).clip(-1.0, 1.0)], axis=1
            )
            futures = imagination.begin(state, c + 1)
            for step in range(1, h + 1):
                futures = imagination.advance(futures, courses[:, :, step - 1], key, step)
            outlook = imagination.compare(futures)
            chosen = np.take_along_axis(courses, outlook.order[:, :elite, None, None], axis=1)
            best, centre = chosen[:, 0], chosen.mean(axis=1)
            spread = np.maximum(chosen.std(axis=1), SPREAD)
        for slot, course in zip(slots.tolist(), best, strict=True):
            self._last[slot] = np.concatenate([course[1:], course[-1:]])
        return imagination.plan(outlook, spec.decode_action(best[:, 0]), best)

    def forget(self, slots: Ints) -> None:
        """See :meth:`Planner.forget`."""
        for slot in slots.tolist():
            self._last.pop(slot, None)


def _barrier(margins: NDArray[Any]) -> NDArray[Any]:
    """
    :param margins: scaled, of any shape
    :return: their logarithms, bounded below
    """
    barrier: NDArray[Any] = np.log(np.maximum(np.nan_to_num(margins, nan=LEAST), LEAST))
    return barrier


def _distinct(courses: Courses, order: Ints) -> Ints:
    """
    :param courses: of ``n`` states, ``c`` each
    :param order: from the best to the worst, ``(n, c)``
    :return: the same, with courses behind all others that have come to the same states as a better one, ``(n, c)``
    """
    n, c = order.shape
    low = courses.state.min(axis=(1, 2), keepdims=True)
    extent = courses.state.max(axis=(1, 2), keepdims=True) - low
    levels = np.rint((courses.state - low) * (LEVELS / np.where(extent > 0.0, extent, np.inf)))
    seen = np.concatenate([levels, courses.reached[..., None]], axis=3, dtype=np.float32).reshape(n * c, -1)
    key = np.take_along_axis(hash_rows(seen).reshape(n, c), order, axis=1)
    by_key = key.argsort(axis=1, kind="stable")
    alike = np.diff(np.take_along_axis(key, by_key, axis=1), axis=1) == 0
    again = np.zeros((n, c), dtype=bool)
    np.put_along_axis(again, by_key[:, 1:], alike, axis=1)
    return np.take_along_axis(order, again.argsort(axis=1, kind="stable"), axis=1)
