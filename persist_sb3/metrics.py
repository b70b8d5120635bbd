"""How well an agent keeps itself alive, computed from what a Monitor could see: internal variables, rewards, ends."""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persist_sb3.viability import ViabilitySet

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class SurvivalCurve:
    """
    The Kaplan-Meier estimate of a survival function. It is 1 before the first time and keeps its last value after the
    last one.

    :param times: where an event was observed, ascending, ``(k,)``
    :param survival: share that survives beyond each, ``(k,)``
    :param variance: of ``survival``, by Greenwood's formula, ``(k,)``
    :param last: longest duration, observed or censored
    """

    times: Floats
    survival: Floats
    variance: Floats
    last: float

    def at(self, time: ArrayLike) -> Floats:
        """
        :param time: any shape
        :return: share that survives beyond it, the same shape
        """
        steps = np.concatenate([[1.0], self.survival])
        return steps[np.searchsorted(self.times, time, side="right")]

    @property
    def median(self) -> float:
        """Earliest time by which half are gone; infinite if more than half survive."""
        # A product of fractions meets one half only up to rounding.
        gone = np.flatnonzero(self.survival <= 0.5 + 1e-9)
        return float(self.times[gone[0]]) if len(gone) else math.inf

    def restricted_mean(self, horizon: float | None = None) -> float:
        """
        Mean time survived, where survival is counted up to a horizon: the area under the curve.

        :param horizon: where counting stops. Default: the longest duration
        :return: in the units of the durations
        :raises ValueError: if the horizon lies beyond the longest duration, where the curve is unknown, unless everyone
            is gone by then
        """
        horizon = self.last if horizon is None else horizon
        if horizon > self.last and self.at(self.last) > 0.0:
            raise ValueError(f"horizon={horizon} lies beyond the longest duration, {self.last}: the curve ends there")
        inside = self.times < horizon
        edges = np.concatenate([[0.0], self.times[inside], [horizon]])
        return float(np.diff(edges) @ np.concatenate([[1.0], self.survival[inside]]))

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """
        Pointwise confidence interval, symmetric in ``log(-log S)``, so within [0, 1] (Kalbfleisch & Prentice, 1980).

        :param level: its confidence, in (0, 1)
        :return: lower and upper bound at each time, ``(k,)`` each; (0, 0) where nobody survives
        """
        z = NormalDist().inv_cdf(0.5 + level / 2)
        inner = self.survival > 0.0
        hazard = -np.log(self.survival, where=inner, out=np.ones_like(self.survival))
        spread = z * np.sqrt(self.variance) / np.where(inner, self.survival * hazard, 1.0)
        lower, upper = np.exp(-hazard * np.exp(spread)), np.exp(-hazard * np.exp(-spread))
        return np.where(inner, lower, 0.0), np.where(inner, upper, 0.0)


def kaplan_meier(durations: ArrayLike, observed: ArrayLike) -> SurvivalCurve:
    """
    Kaplan & Meier (1958), with Greenwood's variance. A duration that ends in censoring counts as at risk up to and
    including its end, so an event and a censoring at the same time happen in that order.

    :param durations: how long each was watched, positive, ``(n,)``
    :param observed: whether the event was seen at the end of it (True) or watching stopped (False), ``(n,)`` bool
    :return: the estimate
    :raises ValueError: if there are none, or the lengths differ
    """
    durations, observed = np.asarray(durations, dtype=np.float64), np.asarray(observed, dtype=bool)
    if durations.ndim != 1 or durations.shape != observed.shape or not len(durations):
        raise ValueError(f"durations {durations.shape} and observed {observed.shape} must be vectors of one length > 0")
    times, events = np.unique(durations[observed], return_counts=True)
    at_risk = len(durations) - np.searchsorted(np.sort(durations), times, side="left")
    survival = np.cumprod(1.0 - events / at_risk, dtype=np.float64)
    left = at_risk - events
    # Where nobody is left, survival is 0 and so is its variance.
    terms = np.divide(events, at_risk * left, where=left > 0, out=np.zeros(len(times)))
    return SurvivalCurve(times, survival, survival**2 * np.cumsum(terms), float(durations.max()))


def recovery_outcomes(
    margin: Floats, near: float, core: float, horizon: int, ends: NDArray[np.intp] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp], Bools]:
    """
    What became of each near-boundary step (``0 <= margin < near``): it recovers if one of the next ``horizon`` steps is
    in the safe core (``margin >= core``) and no violation (``margin < 0``) comes before. A step whose fate lies beyond
    the end of its episode, or of the data, is left out.

    :param margin: smallest margin at each step of ``n`` environments, ``(L, n)``
    :param near: below which margin a step is near the boundary
    :param core: from which margin on a step is safe
    :param horizon: steps within which it has to recover
    :param ends: for each step, the first one after its episode, ``(L, n)``. Default: the end of the data
    :return: the near-boundary steps (which step, ``(k,)``, of which environment, ``(k,)``), and which of them recover,
        ``(k,)`` bool
    """
    length = len(margin)
    inside = margin >= 0.0
    steps, slots = np.nonzero(inside & (margin < near))
    if not len(steps):
        return steps, slots, np.zeros(0, dtype=bool)
    # The next step that settles the fate of this one, in the safe core or outside.
    settles = np.where((margin >= core) | ~inside, np.arange(length)[:, None], length)
    settled = np.minimum.accumulate(settles[::-1], axis=0)[::-1][steps, slots]
    end = length if ends is None else ends[steps, slots]
    deadline = steps + horizon
    in_time = settled < np.minimum(deadline + 1, end)
    known = in_time | (deadline < end)
    recovers = in_time & inside[np.minimum(settled, length - 1), slots]
    return steps[known], slots[known], recovers[known]


def intrinsic_share(terms: Mapping[str, float]) -> float | None:
    """
    How much of what the agent is paid is intrinsic.

    :param terms: mean or sum of each reward term
    :return: size of the term ``intrinsic`` over the sum of the sizes of all terms, in ``[0, 1]``; None if there is no
        such term, or nothing was paid
    """
    total = sum(abs(value) for value in terms.values())
    return abs(terms["intrinsic"]) / total if "intrinsic" in terms and total > 0.0 else None


def bonus_shares(terms: Mapping[str, float], bonuses: Mapping[str, float]) -> dict[str, float]:
    """
    The same of each bonus, where the term ``intrinsic`` consists of several.

    :param terms: mean or sum of each reward term
    :param bonuses: the same of each bonus
    :return: size of each bonus over the sum of the sizes of all bonuses and all other terms, in ``[0, 1]``; empty if
        nothing was paid
    """
    parts = {**{name: value for name, value in terms.items() if name != "intrinsic"}, **bonuses}
    total = sum(abs(value) for value in parts.values())
    return {name: abs(value) / total for name, value in bonuses.items()} if total > 0.0 else {}


@dataclass
class EpisodeRecord:
    """
    One finished episode.

    :param length: steps
    :param terminated: it ended by itself
    :param truncated: it was cut off
    :param violated: the constraint that was violated first, None if none was
    :param violated_at: the step that violated it, the first step being 1; None if none did
    :param violations: steps that violate a constraint
    :param min_margin: smallest scaled margin
    :param satisfaction: share of steps at which each constraint holds
    :param near_steps: near-boundary steps whose fate is known, see :func:`recovery_outcomes`
    :param recovered_steps: how many of them recovered
    :param task_return: sum of the reward term ``task``, or of the reward where terms are not told apart
    :param shaped_return: sum of the reward that the learner got
    :param reward_terms: sum of each term of it
    :param bonuses: sum of each bonus in the term ``intrinsic``; empty where there are not several
    :param env: index of the environment
    :param timestep: how many steps all environments together had made when it ended
    :param interventions: steps at which a shield changed the action; None without a shield
    :param stage: of the curriculum, from 0, in which it ended; None without a curriculum
    """

    length: int
    terminated: bool
    truncated: bool
    violated: str | None
    violated_at: int | None
    violations: int
    min_margin: float
    satisfaction: dict[str, float]
    near_steps: int
    recovered_steps: int
    task_return: float
    shaped_return: float
    reward_terms: dict[str, float] = field(default_factory=dict)
    bonuses: dict[str, float] = field(default_factory=dict)
    env: int = 0
    timestep: int = 0
    interventions: int | None = None
    stage: int | None = None

    @property
    def survived(self) -> bool:
        """No constraint was violated, whatever ended the episode."""
        return self.violated_at is None

    @property
    def duration(self) -> int:
        """Steps to the first violation, or to where watching stopped."""
        return self.length if self.violated_at is None else self.violated_at

    def to_json(self) -> str:
        """
        :return: one line, without its end
        """
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, line: str) -> "EpisodeRecord":
        """
        :param line: what :meth:`to_json` returned; keys of a newer version are left out
        :return: the record
        :raises ValueError: if it is not one
        """
        values = json.loads(line)
        try:
            # Lines from before these were told do not say.
            values = {"interventions": None, "stage": None, "bonuses": {}, **values}
            return cls(**{name.name: values[name.name] for name in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an episode record ({error!r} is missing or wrong): {line!r}") from error


def read_episodes(path: str | os.PathLike[str]) -> list[EpisodeRecord]:
    """
    Read the file that :class:`~persist_sb3.callbacks.MetricsCallback` writes. A process that is killed can leave a torn
    last line: it is left out, with a warning.

    :param path: the ``persist.jsonl`` of a run
    :return: its episodes, in the order in which they ended
    :raises ValueError: naming the line, if another one is damaged
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(EpisodeRecord.from_json(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: {error}") from error
            warnings.warn(f"{path}: the last line is torn and was left out: {line!r}", stacklevel=2)
    return records


def survival_curve(episodes: Sequence[EpisodeRecord]) -> SurvivalCurve:
    """
    :param episodes: at least one
    :return: the Kaplan-Meier curve of the time to the first violation; an episode without one is censored at its end
    """
    return kaplan_meier([episode.duration for episode in episodes], [not episode.survived for episode in episodes])


@dataclass(frozen=True)
class StepSummary:
    """
    All steps of all environments between two moments.

    :param steps: how many
    :param violations: how many of them violate a constraint
    :param min_margin: smallest scaled margin among them
    :param satisfaction: share at which every constraint that mentions a variable holds, by variable
    :param reward_terms: mean of each reward term
    :param bonuses: mean of each bonus in the term ``intrinsic``; empty where there are not several
    :param intervention_rate: share at which a shield changed the action; None without a shield
    """

    steps: int
    violations: int
    min_margin: float
    satisfaction: dict[str, float]
    reward_terms: dict[str, float]
    bonuses: dict[str, float]
    intervention_rate: float | None


# Rows of the tracker's table of episodes; those of the constraints and of the rewards follow.
_LENGTH, _VIOLATIONS, _VIOLATED_AT, _VIOLATED, _NEAR, _RECOVERED, _SINGLE = range(7)


class EpisodeTracker:
    """
    Follows ``n`` environments step by step, and turns every episode that ends into a record. Its memory does not grow
    with the length of an episode.

    :param viability: the constraints
    :param num_envs: number of environments, ``n``
    :param terms: names of the reward terms
    :param bonuses: names of the bonuses that the term ``intrinsic`` consists of, see
            :func:`~persist_sb3.infos.told_bonuses`
    :param near: see :func:`recovery_outcomes`
    :param core: see :func:`recovery_outcomes`
    :param horizon: see :func:`recovery_outcomes`
    :param midway: the episodes now in progress began earlier, so that their records would be wrong: leave them out
    :param prompt: hand out a record in the step that ends its episode. Otherwise it may take up to ``CHUNK`` steps, and
        costs less, since all that happened meanwhile is worked through at once
    :param shielded: whether steps tell where a shield intervened
    """

    CHUNK = 64

    def __init__(
        self,
        viability: ViabilitySet,
        num_envs: int,
        terms: Sequence[str] = (),
        *,
        bonuses: Sequence[str] = (),
        near: float,
        core: float,
        horizon: int,
        midway: bool = False,
        prompt: bool = True,
        shielded: bool = False,
    ) -> None:
        self.viability = viability
        self.num_envs = num_envs
        self.terms = tuple(terms)
        self.bonuses = tuple(bonuses)
        self.prompt = prompt
        self.shielded = shielded
        #: Steps (of all environments at once) since the beginning.
        self.steps = 0
        self._recovery = (near, core, horizon)
        self._mentions = np.array([[dim in c.names for dim in viability.dims] for c in viability.constraints])
        self._mentioned = self._mentions.any(axis=0)

        # The chunk: steps in front, where they are quickly put.
        self._filled = 0
        self._internal = np.empty((self.CHUNK, num_envs, len(viability.dims)))
        # The reward, its terms, and bonuses and interventions, which are summed like them.
        columns = 1 + len(self.terms) + len(self.bonuses) + shielded
        self._rewards = np.empty((self.CHUNK, columns, num_envs))
        self._ends = np.empty((self.CHUNK, 2, num_envs), dtype=bool)

        # Of the episodes in progress, up to the chunk.
        self._whole = np.full(num_envs, not midway)
        self._totals = np.zeros((_SINGLE + len(viability.constraints) + columns, num_envs))
        self._lowest = np.full(num_envs, np.inf)
        # The last margins, whose fate is not known yet; infinite, so not near the boundary, before an episode.
        self._undecided = np.full((horizon, num_envs), np.inf)

        self._ready: list[EpisodeRecord] = []
        self._violations = 0
        self._begin_summary()

    def step(
        self,
        internal: Floats,
        reward: Floats,
        terms: Mapping[str, Floats],
        done: Bools,
        truncated: Bools,
        intervened: Bools | None = None,
        bonuses: Mapping[str, Floats] | None = None,
    ) -> list[EpisodeRecord]:
        """
        :param internal: internal variables after the step, ``(n, d)``
        :param reward: ``(n,)``
        :param terms: what it consists of, ``(n,)`` each
        :param done: where an episode ended, ``(n,)``
        :param truncated: where it was cut off, ``(n,)``
        :param intervened: where a shield changed the action, ``(n,)``; None without one
        :param bonuses: what the layers paid, ``(n,)`` each; None if there are not several
        :return: episodes that ended and were not handed out yet, by time and environment
        """
        self._internal[self._filled] = internal
        rewards = self._rewards[self._filled]
        rewards[0] = reward
        for row, values in enumerate(chain(terms.values(), (bonuses or {}).values()), start=1):
            rewards[row] = values
        if self.shielded:
            rewards[-1] = intervened
        ends = self._ends[self._filled]
        ends[0], ends[1] = done, truncated
        self._filled += 1
        self.steps += 1
        if self._filled == self.CHUNK or (self.prompt and np.count_nonzero(done)):
            return self.take()
        return []

    def take(self) -> list[EpisodeRecord]:
        """
        :return: episodes that ended and were not handed out yet, by time and environment
        """
        self._digest()
        ready, self._ready = self._ready, []
        return ready

    @property
    def violations(self) -> int:
        """Steps that violated a constraint, since the beginning."""
        self._digest()
        return self._violations

    def summary(self) -> StepSummary:
        """
        :return: the steps since the last summary, at least one
        """
        self._digest()
        dims = np.array(self.viability.dims)[self._mentioned].tolist()
        held = 1.0 - self._sum_broken[self._mentioned] / self._sum_steps
        terms, bonuses, rest = self._split((self._sum_rewards[1:] / self._sum_steps).tolist())
        summary = StepSummary(
            steps=self._sum_steps,
            violations=self._violations - self._violations_before,
            min_margin=self._sum_lowest,
            satisfaction=dict(zip(dims, held.tolist(), strict=True)),
            reward_terms=terms,
            bonuses=bonuses,
            intervention_rate=rest[0] if self.shielded else None,
        )
        self._begin_summary()
        return summary

    def _split(self, columns: Sequence[float]) -> tuple[dict[str, float], dict[str, float], Sequence[float]]:
        """
        :param columns: of the table of rewards, after the reward itself
        :return: reward terms and bonuses by name, and what follows them
        """
        terms, bonuses = len(self.terms), len(self.terms) + len(self.bonuses)
        return (
            dict(zip(self.terms, columns[:terms], strict=True)),
            dict(zip(self.bonuses, columns[terms:bonuses], strict=True)),
            columns[bonuses:],
        )

    def _begin_summary(self) -> None:
        self._violations_before = self._violations
        self._sum_steps = 0
        self._sum_lowest = math.inf
        self._sum_broken = np.zeros(len(self.viability.dims), dtype=np.intp)
        self._sum_rewards = np.zeros(self._rewards.shape[1])

    def _digest(self) -> None:
        """Work through the chunk. A stretch is what it holds of one episode: ``s`` of them, by environment and time."""
        if not self._filled:
            return
        n, filled = self.num_envs, self._filled
        # Environments in front, so that the steps of an episode lie side by side.
        internal = self._internal[:filled].swapaxes(0, 1).reshape(n * filled, -1)
        rewards = self._rewards[:filled].transpose(1, 2, 0).reshape(-1, n * filled)
        done, cut_off = self._ends[:filled].transpose(1, 2, 0)
        begins = np.ones((n, filled), dtype=bool)
        begins[:, 1:] = done[:, :-1]
        stretch = np.cumsum(begins).reshape(n, filled) - 1
        starts = np.flatnonzero(begins)
        ends = np.append(starts[1:], n * filled) - 1
        over = done.reshape(-1)[ends]
        first, last = stretch[:, 0], stretch[:, -1]

        margins = self.viability.margins(internal)
        smallest = margins.min(axis=1)
        lowest = np.minimum.reduceat(smallest, starts)
        totals = np.zeros((len(self._totals), len(starts)))
        totals[_LENGTH] = ends - starts + 1
        totals[_SINGLE + len(self._mentions) :] = np.add.reduceat(rewards, starts, axis=1)
        self._sum_steps += n * filled
        self._sum_rewards += rewards.sum(axis=1)
        self._sum_lowest = min(self._sum_lowest, float(lowest.min()))
        self._add_violations(totals, margins, np.flatnonzero(smallest < 0.0), stretch.reshape(-1), starts)
        self._add_recoveries(totals, smallest.reshape(n, filled).T, done.T, stretch)

        # Add what the first stretches bring along. Of two first violations, the one brought along is the earlier.
        brought = self._totals
        totals[_VIOLATED_AT : _VIOLATED + 1, first[brought[_VIOLATED_AT] > 0.0]] = 0.0
        hurt_now = totals[_VIOLATED_AT, first] > 0.0
        totals[_VIOLATED_AT, first[hurt_now]] += brought[_LENGTH, hurt_now]
        totals[:, first] += brought
        lowest[first] = np.minimum(lowest[first], self._lowest)

        whole = np.ones(len(starts), dtype=bool)
        whole[first] = self._whole
        finished = np.flatnonzero(over & whole)
        times = ends % filled
        for index in finished[np.argsort(times[finished], kind="stable")].tolist():
            env, time = int(starts[index]) // filled, int(times[index])
            truncated = bool(cut_off[env, time])
            timestep = (self.steps - filled + time + 1) * n
            self._ready.append(self._record(totals[:, index].tolist(), float(lowest[index]), truncated, env, timestep))

        going_on = ~over[last]
        self._whole |= done.any(axis=1)
        self._totals = totals[:, last] * going_on
        self._lowest = np.where(going_on, lowest[last], np.inf)
        self._filled = 0

    def _add_violations(
        self,
        totals: Floats,
        margins: Floats,
        rows: NDArray[np.intp],
        stretch: NDArray[np.intp],
        starts: NDArray[np.intp],
    ) -> None:
        """
        :param totals: of each stretch, changed in place, ``(_, s)``
        :param margins: of each step, environment after environment, ``(nt, m)``
        :param rows: the steps with a negative margin, ascending, ``(k,)``
        :param stretch: which stretch a step is in, ``(nt,)``
        :param starts: its first step, ``(s,)``
        """
        if not len(rows):
            return
        count, constraints = len(starts), len(self._mentions)
        broken = margins[rows] < 0.0
        where = stretch[rows]
        row, constraint = np.nonzero(broken)
        cells = np.bincount(constraint * count + where[row], minlength=constraints * count)
        totals[_VIOLATIONS] = np.bincount(where, minlength=count)
        totals[_SINGLE : _SINGLE + constraints] = cells.reshape(constraints, count)
        self._violations += len(rows)
        self._sum_broken += (broken @ self._mentions).sum(axis=0)
        # Backwards: of several assignments to one stretch the last, its first violation, stays.
        rows, where = rows[::-1], where[::-1]
        totals[_VIOLATED_AT, where] = rows - starts[where] + 1
        totals[_VIOLATED, where] = margins[rows].argmin(axis=1)

    def _add_recoveries(self, totals: Floats, smallest: Floats, done: Bools, stretch: NDArray[np.intp]) -> None:
        """
        :param totals: of each stretch, changed in place, ``(_, s)``
        :param smallest: smallest margin of each step, ``(t, n)``
        :param done: where an episode ended, ``(t, n)``
        :param stretch: which stretch a step is in, ``(n, t)``
        """
        filled, undecided, count = len(smallest), len(self._undecided), totals.shape[1]
        joined = np.concatenate([self._undecided, smallest])
        length = len(joined)
        marks = np.full(joined.shape, length + 1)
        steps, slots = np.nonzero(done)
        marks[undecided + steps, slots] = undecided + steps + 1
        ends = np.minimum.accumulate(marks[::-1], axis=0)[::-1]
        over = ends <= length

        steps, slots, recovers = recovery_outcomes(joined, *self._recovery, ends=np.minimum(ends, length))
        # The last steps of an episode that goes on wait until all that decides about them is there.
        counts = (steps < filled) | over[steps, slots]
        where = stretch[slots, np.maximum(steps - undecided, 0)]
        totals[_NEAR] = np.bincount(where[counts], minlength=count)
        totals[_RECOVERED] = np.bincount(where[counts & recovers], minlength=count)
        self._undecided = np.where(over[filled:], np.inf, joined[filled:])

    def _record(self, totals: list[float], lowest: float, truncated: bool, env: int, timestep: int) -> EpisodeRecord:
        length, violations, violated_at, violated, near, recovered = map(int, totals[:_SINGLE])
        names = [constraint.text for constraint in self.viability.constraints]
        broken, (shaped_return, *returns) = totals[_SINGLE : _SINGLE + len(names)], totals[_SINGLE + len(names) :]
        reward_terms, bonuses, rest = self._split(returns)
        return EpisodeRecord(
            length=length,
            terminated=not truncated,
            truncated=truncated,
            violated=names[violated] if violated_at else None,
            violated_at=violated_at or None,
            violations=violations,
            min_margin=lowest,
            satisfaction={name: 1.0 - steps / length for name, steps in zip(names, broken, strict=True)},
            near_steps=near,
            recovered_steps=recovered,
            task_return=reward_terms.get("task", shaped_return),
            shaped_return=shaped_return,
            reward_terms=reward_terms,
            bonuses=bonuses,
            env=env,
            timestep=timestep,
            interventions=int(rest[0]) if self.shielded else None,
        )
