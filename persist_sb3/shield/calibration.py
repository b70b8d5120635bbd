"""Calibration: how often actions of a given value turn out safe, and which value is enough for a given confidence."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import betaincinv

from persist_sb3.models.base import Model
from persist_sb3.models.spec import Floats, StateSpec

Counts = NDArray[np.intp]

#: Lower edges of the bins that values are sorted into, in scaled margins; the first bin holds all that is less, too.
EDGES = np.linspace(-0.5, 1.0, 31)

#: The bin of value 0. Less is never enough: what harms slowly lies beyond the horizon, but not beyond the critic's.
ZERO = int(np.argmin(np.abs(EDGES)))

#: Probability of certifying a threshold that is not enough.
ERROR = 0.1


@dataclass(frozen=True)
class Outcomes:
    """
    What became of decisions near the boundary, by the critic's value.

    :param value: lower edges of the bins that have decisions, in scaled margins, ``b`` of them
    :param made: decisions in each, ``b``
    :param kept: how many of them stayed safe, ``b``
    :param declared: ``p_safe`` of such a value, in [0, 1]; None before there is one, ``b``
    :param threshold: least value that is enough for the confidence asked for, in scaled margins
    """

    value: list[float]
    made: list[int]
    kept: list[int]
    declared: list[float | None]
    threshold: float

    @property
    def realised(self) -> list[float]:
        """Share of the decisions that stayed safe, ``b``."""
        return [kept / made for kept, made in zip(self.kept, self.made, strict=True)]


class Calibration(Model):
    """
    What became of the decisions of the last episodes: by value of the executed action, how many there were and how
    many of them were safe, which is to say that no constraint broke within ``horizon`` steps, in closed loop: with the
    policy, the shield and the critic that there were. From that it reads

    - :meth:`p_safe`, an increasing function of the value (isotonic regression over the bins; Zadrozny & Elkan, KDD
      2002);
    - :attr:`threshold`, the least value ``t``, not below 0, such that a decision valued ``t`` or more is safe with
      probability ``level``. It is found by testing one threshold after the other, the greatest first, until one fails
      (learn then test, Angelopoulos et al., 2021), each by an exact binomial bound (Clopper & Pearson, 1934). Decisions
      of one episode depend on each other, so each episode contributes one, drawn at random. A shield that refuses what
      is valued less than ``t`` leads elsewhere than one that does not, so an episode says nothing of thresholds more
      than one step below the greatest that was in force in it: a threshold comes down a step at a time, each seen in
      closed loop before the next. Where none is certified, it is that with the greatest lower bound, and
      :attr:`certified` is false.

    The level follows adaptive conformal inference (Gibbs & Candès, NeurIPS 2021): an episode whose decision went wrong
    asks for more, one whose decision did not asks for a little less, so that the share of wrong ones comes to
    ``1 - conf`` in the long run even while policy and critic change.

    Nothing here is a guarantee for a single decision, or for another policy than the one that is running.

    Of the decisions that passed it also counts which constraint broke after them: :attr:`risk`.

    :param spec: the environment's state and actions
    :param conf: confidence asked for, in (0, 1)
    :param horizon: steps within which a decision must prove safe
    :param episodes: how many are remembered
    :param step_size: by which the level adapts at the end of an episode; 0 leaves it at ``conf``
    :param start: threshold as long as nothing is known, in scaled margins
    """

    made: torch.Tensor
    kept: torch.Tensor
    passed: torch.Tensor
    broke: torch.Tensor
    draw: torch.Tensor
    force: torch.Tensor
    count: torch.Tensor
    level: torch.Tensor
    limit: torch.Tensor
    certain: torch.Tensor
    curve: torch.Tensor

    def __init__(
        self,
        spec: StateSpec,
        conf: float,
        horizon: int = 8,
        episodes: int = 500,
        step_size: float = 0.01,
        start: float = 0.2,
    ) -> None:
        super().__init__(spec, conf=conf, horizon=horizon, episodes=episodes, step_size=step_size, start=start)
        self.conf = conf
        self.horizon = horizon
        self.episodes = episodes
        self.step_size = step_size
        bins = len(EDGES)
        self.register_buffer("made", torch.zeros(episodes, bins, dtype=torch.int64))
        self.register_buffer("kept", torch.zeros(episodes, bins, dtype=torch.int64))
        #: Decisions that passed, and by constraint after how many of them it broke.
        self.register_buffer("passed", torch.zeros(episodes, dtype=torch.int64))
        self.register_buffer("broke", torch.zeros(episodes, len(spec.viability.names), dtype=torch.int64))
        #: Uniform in [0, 1): which decision of the episode counts.
        self.register_buffer("draw", torch.zeros(episodes, dtype=torch.float64))
        #: The greatest threshold that was in force in it.
        self.register_buffer("force", torch.full((episodes,), start, dtype=torch.float64))
        #: Episodes so far.
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        #: What is asked of the threshold now.
        self.register_buffer("level", torch.tensor(conf, dtype=torch.float64))
        self.register_buffer("limit", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("certain", torch.zeros((), dtype=torch.bool))
        self.register_buffer("curve", torch.full((bins,), torch.nan, dtype=torch.float64))

    @property
    def threshold(self) -> float:
        """Least value of an action that passes, in scaled margins."""
        return float(self.limit)

    @property
    def certified(self) -> bool:
        """Whether the last episodes certify the threshold."""
        return bool(self.certain)

    @property
    def risk(self) -> NDArray[np.float64]:
        """
        By constraint, the share of the decisions that passed in the episodes that are remembered after which it broke,
        ``(m,)``; NaN as long as none passed. Where several break at once each is counted, so that the risks add up to
        at least the share of decisions that went wrong.
        """
        passed = int(self.passed.sum())
        return self.broke.numpy().sum(axis=0) / passed if passed else np.full(self.broke.shape[1], np.nan)

    @property
    def outcomes(self) -> Outcomes | None:
        """What is remembered of all episodes together; None if that is nothing."""
        made, kept = (counts.numpy().sum(axis=0) for counts in (self.made, self.kept))
        seen = made > 0
        if not seen.any():
            return None
        curve = self.curve.numpy()[seen]
        declared = [float(share) if np.isfinite(share) else None for share in curve]
        return Outcomes(EDGES[seen].tolist(), made[seen].tolist(), kept[seen].tolist(), declared, self.threshold)

    def p_safe(self, value: Floats) -> Floats:
        """
        :param value: of actions, ``(r,)``
        :return: the share of such decisions that was safe, ``(r,)``; NaN before there were any
        """
        curve = self.curve.numpy()[bins_of(value)].astype(np.float32)
        return np.where(np.isfinite(value), curve, np.float32(np.nan))

    def add(
        self,
        made: Counts,
        kept: Counts,
        draw: float,
        force: float | None = None,
        passed: int = 0,
        broke: Counts | int = 0,
    ) -> None:
        """
        Remember an episode, and forget the oldest.

        :param made: its decisions, by bin of their value, ``(b,)``
        :param kept: how many of them were safe, ``(b,)``
        :param draw: uniform in [0, 1)
        :param force: the greatest threshold that was in force in it. Default: :attr:`threshold`
        :param passed: how many of its decisions passed
        :param broke: by constraint, after how many of these it broke, ``(m,)``
        """
        if not made.any():
            return
        least = bins_of(np.array([self.threshold]))[0]
        outcome = drawn(made[None], kept[None], np.array([draw]))[0, least]
        if outcome >= 0:
            wrong = 1.0 - outcome
            self.level += self.step_size * (wrong - (1.0 - self.conf))
        row = int(self.count) % self.episodes
        self.made[row], self.kept[row], self.draw[row] = torch.as_tensor(made), torch.as_tensor(kept), draw
        self.passed[row], self.broke[row] = passed, torch.as_tensor(broke)
        self.force[row] = self.threshold if force is None else force
        self.count += 1

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any, **more: Any) -> None:
        # A zip that was saved before risks were counted says nothing of them.
        for name in ("passed", "broke"):
            state_dict.setdefault(f"{prefix}{name}", torch.zeros_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *others, **more)

    def fit(self) -> None:
        """Read the curve and the threshold from the episodes that are remembered."""
        rows = min(int(self.count), self.episodes)
        if not rows:
            return
        made, kept = self.made.numpy()[:rows], self.kept.numpy()[:rows]
        self.curve.copy_(torch.as_tensor(increasing(made.sum(axis=0), kept.sum(axis=0))))
        outcomes = drawn(made, kept, self.draw.numpy()[:rows])
        # Bins of equal width: an edge lies as far below the next as the first below the second.
        lowest = bins_of(self.force.numpy()[:rows])[:, None] - 1
        outcomes = np.where(np.arange(len(EDGES)) >= lowest, outcomes, np.int8(-1))
        lower = lower_bound((outcomes == 1).sum(axis=0), (outcomes >= 0).sum(axis=0), ERROR)
        index, certified = first_enough(lower[ZERO:], float(self.level))
        self.limit.fill_(EDGES[ZERO + index])
        self.certain.fill_(certified)


def bins_of(value: NDArray[np.floating]) -> NDArray[np.intp]:
    """
    :param value: any shape
    :return: the bins of :data:`EDGES` that they lie in; a value on an edge lies above it
    """
    # In single precision, where a value that was computed to be on an edge is on it.
    edges = EDGES.astype(np.float32)
    return (np.searchsorted(edges, np.asarray(value, dtype=np.float32), side="right") - 1).clip(0)


def drawn(made: Counts, kept: Counts, draw: NDArray[np.float64]) -> NDArray[np.int8]:
    """
    One decision of each episode, drawn from those whose value is at least an edge.

    :param made: decisions by bin, ``(e, b)``
    :param kept: safe ones among them, ``(e, b)``
    :param draw: uniform in [0, 1), ``(e,)``
    :return: for each edge whether the drawn one was safe, 1 or 0; -1 where there is none, ``(e, b)``
    """
    above = np.flip(np.cumsum(np.flip(made, axis=1), axis=1), axis=1)
    safe = np.flip(np.cumsum(np.flip(kept, axis=1), axis=1), axis=1)
    outcome = (draw[:, None] * above < safe).astype(np.int8)
    return np.where(above > 0, outcome, np.int8(-1))


def increasing(made: Counts, kept: Counts) -> NDArray[np.float64]:
    """
    :param made: decisions by bin, ``(b,)``
    :param kept: safe ones among them, ``(b,)``
    :return: the increasing shares that fit best; between bins with decisions they are interpolated, and beyond them
        constant; NaN if there are none, ``(b,)``
    """
    there = np.flatnonzero(made)
    if not len(there):
        return np.full(len(made), np.nan)
    shares = isotonic_regression(kept[there] / made[there], weights=made[there]).x
    return np.interp(np.arange(len(made)), there, shares)


def lower_bound(successes: Counts, trials: Counts, error: float) -> NDArray[np.float64]:
    """
    Lower confidence bound of a probability (Clopper & Pearson, "The use of confidence or fiducial limits illustrated in
    the case of the binomial", Biometrika, 1934).

    :param successes: ``(b,)``
    :param trials: ``(b,)``
    :param error: probability that the bound is too great, in (0, 1)
    :return: 0 without successes, ``(b,)``
    """
    some = np.maximum(successes, 1)
    bound: NDArray[np.float64] = betaincinv(some, trials - np.minimum(some, trials) + 1, error)
    return np.where(successes > 0, bound, 0.0)


def first_enough(lower: NDArray[np.float64], level: float) -> tuple[int, bool]:
    """
    :param lower: lower bound for each threshold, the least threshold first, ``(b,)``
    :param level: least bound that is enough
    :return: the least threshold down to which all that could be tested are enough, and whether there is one; else that
        with the greatest bound
    """
    enough = lower >= level
    # Few episodes reach the greatest thresholds: the sequence of tests begins where there are enough to pass one.
    if not enough.any():
        return int(lower.argmax()), False
    top = int(np.flatnonzero(enough)[-1])
    failed = np.flatnonzero(~enough[:top])
    return int(failed[-1]) + 1 if len(failed) else 0, True
