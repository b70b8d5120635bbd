"""Looks ahead: imagines what may follow an action, and how often it stays within the limits."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from persist_sb3.batch import Batch, unflatten
from persist_sb3.draws import Draws, hash_rows
from persist_sb3.models.belief import BeliefColumns
from persist_sb3.models.imagination import Dynamics, begin
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield.criteria import CRITERIA, Criterion, passes
from persist_sb3.shield.decision import NONE, Verdict

#: Stands for a margin that a model gave as something that is not a number.
UNFORESEEABLE = -1e3


Policy = Callable[[Batch, NDArray[Any]], NDArray[Any]]


class Course(NamedTuple):
    """What the agent does in ``r`` states, and how that ends."""

    action: Floats  # encoded, (r, A)
    values: Floats | None  # least scaled margin from here on, overall and by constraint, (r, 1 + m); None if not known


class Backup(Protocol):
    """How the agent goes on after the action that is judged."""

    def __call__(self, state: Floats) -> Course:
        """
        :param state: ``(r, D)``
        :return: what it does there
        """


class CriticBackup:
    """
    The safest action, as the viability critic sees it.

    :param critic: values states and actions
    """

    def __init__(self, critic: ViabilityCritic) -> None:
        self._critic = critic
        spec = critic.spec
        self._encoded = None if spec.continuous else spec.encode_action(spec.actions)

    def __call__(self, state: Floats) -> Course:
        if self._encoded is None:
            action = self._critic.best_action(state)
            values = self._critic.action_values(state, action)
        else:
            everything = self._critic.values(state)
            best = everything[:, :, 0].argmax(axis=1)
            action, values = self._encoded[best], everything[np.arange(len(state)), best]
        return Course(action, values)


class PolicyBackup:
    """
    A policy that is known to be safe where it is: model predictive shielding (Bastani & Li, "Safe reinforcement
    learning via statistical model predictive shielding", RSS 2021).

    :param spec: the environment's state and actions
    :param policy: takes observations and internal variables and returns actions, all as the environment has them, but
        in batches of ``r``
    """

    def __init__(self, spec: StateSpec, policy: Policy) -> None:
        self._spec = spec
        self._policy = policy

    def __call__(self, state: Floats) -> Course:
        observation, internal = np.split(state, [self._spec.observation_dim], axis=1)
        action = self._policy(unflatten(self._spec.observation_space, observation), internal)
        return Course(self._spec.encode_action(action), None)


class Futures(NamedTuple):
    """How ``k`` futures of each of ``r`` actions go."""

    slack: Floats  # by how much the future is safe: negative where it is not, (r, k)
    least: Floats  # least scaled margin in it, as far as it is known; NaN if a model failed, (r, k)
    constraint: NDArray[np.intp]  # which constraint that is of, (r, k)
    step: NDArray[np.intp]  # when that constraint breaks, NONE if it does not, (r, k)


class RolloutVerifier:
    """
    Judges actions by ``rollouts`` imagined futures of ``horizon`` steps each: first the action, then what ``backup``
    does in every state that comes (a plan fixed beforehand would not react to where chance leads). A future follows one
    opinion about the dynamics throughout. It is safe if no constraint breaks, and if where it ends the backup's value,
    known from a critic, is at least ``threshold``.

    All futures of all actions advance together, one call of the dynamics a step. Chance is drawn by a hash of the
    state: all actions of a state meet the same, and the verdict does not depend on who else is judged, nor on how
    often.

    :param spec: the environment's state and actions
    :param dynamics: what becomes of a state
    :param backup: what the agent does after the action
    :param conf: confidence asked for, in ``(0, 1]``; see :func:`~persist_sb3.shield.criteria.passes`. Of ``rollouts``
        futures, shares in steps of ``1 / rollouts`` can be told apart
    :param horizon: steps looked ahead
    :param rollouts: futures of each action
    :param criterion: when they are safe enough: ``"probability"``, ``"worst_case"`` or ``"cvar"``
    :param threshold: least value at the end of a safe future, in scaled margins
    :param belief: where the observation shows a belief about hidden variables. Then each future begins with a sample of
        it, the same for all actions of a state
    :raises ValueError: if a parameter is out of its range
    """

    def __init__(
        self,
        spec: StateSpec,
        dynamics: Dynamics,
        backup: Backup,
        conf: float = 0.9,
        horizon: int = 5,
        rollouts: int = 16,
        criterion: Criterion = "probability",
        threshold: float = 0.2,
        belief: BeliefColumns | None = None,
    ) -> None:
        check_search(conf, horizon, rollouts, criterion)
        self._spec = spec
        self._dynamics = dynamics
        self._backup = backup
        self.conf = conf
        self.horizon = horizon
        self.rollouts = rollouts
        self.criterion: Criterion = criterion
        self.threshold = threshold
        self._belief = belief
        #: Scaled margin below which a constraint counts as broken.
        self.limit = 0.0

    def __call__(self, state: Floats, action: Floats) -> Verdict:
        """
        :param state: ``(r, D)``
        :param action: encoded, ``(r, A)``
        :return: ``r`` rows. ``score`` is the mean over the futures of their least margin, values at the end included,
            and a break counted lower the earlier it comes (NaN if a model failed); ``constraint``, ``margin`` and
            ``step`` are about the futures that are not safe, if there are any: the constraint that fails in most of
            them, the mean of its least margin there, and the median of the step at which it breaks
        """
        futures = self.imagine(state, action)
        safe: NDArray[np.bool_] = np.greater_equal(futures.slack, 0.0)
        about = ~safe | safe.all(axis=1, keepdims=True)
        # Nothing is imagined beyond a break: without this, the action that breaks first would seem to break least.
        cut = np.where(futures.step == NONE, 0.0, 1.0 - futures.step / self.horizon).astype(np.float32)
        votes = np.eye(len(self._spec.viability.constraints), dtype=np.intp)[futures.constraint] * about[:, :, None]
        constraint = votes.sum(axis=1).argmax(axis=1)
        about &= futures.constraint == constraint[:, None]
        return Verdict(
            safe=passes(futures.slack, self.criterion, self.conf),
            score=(futures.least - cut).mean(axis=1),
            p_safe=safe.mean(axis=1, dtype=np.float32),
            constraint=constraint,
            margin=futures.least.mean(axis=1, where=about),
            step=_median(futures.step, about & (futures.step != NONE)),
        )

    def imagine(self, state: Floats, action: Floats) -> Futures:
        """
        :param state: ``(r, D)``
        :param action: encoded, ``(r, A)``
        :return: what may follow
        """
        k, spec, rows = self.rollouts, self._spec, len(state) * self.rollouts
        everyone = np.arange(rows)
        noise = Draws.split(hash_rows(state), k)
        members = np.tile(np.arange(k) % self._dynamics.members, len(state))
        state, action = np.repeat(state, k, axis=0), np.repeat(action, k, axis=0)
        if self._belief is not None:
            state = self._belief.sample(state, noise)
        least = np.full(rows, np.inf, dtype=np.float32)
        constraint = np.zeros(rows, dtype=np.intp)
        step = np.full(rows, NONE)
        dynamics = begin(self._dynamics, state)
        for now in range(1, self.horizon + 1):
            state = dynamics.step(state, action, members, noise)
            margins = spec.viability.margins(state[:, spec.observation_dim :])
            worst = margins.argmin(axis=1)
            margin = np.nan_to_num(margins[everyone, worst], nan=UNFORESEEABLE)
            # Nothing that happens after a constraint has broken counts.
            closer = (margin < least) & (step == NONE)
            least[closer], constraint[closer] = margin[closer], worst[closer]
            step[closer & (margin < self.limit)] = now
            course = self._backup(state)
            action = course.action
        slack = least - np.float32(self.limit)
        if course.values is not None:
            value = np.nan_to_num(course.values[:, 0], nan=UNFORESEEABLE)
            slack = np.minimum(slack, value - self.threshold)
            closer = (value < least) & (step == NONE)
            about = course.values[:, 1:].argmin(axis=1)
            least, constraint = np.where(closer, value, least), np.where(closer, about, constraint)
        least = np.where(least == UNFORESEEABLE, np.nan, least)
        return Futures(slack.reshape(-1, k), least.reshape(-1, k), constraint.reshape(-1, k), step.reshape(-1, k))


def check_search(conf: float, horizon: int, rollouts: int, criterion: str) -> None:
    """
    :param conf: in ``(0, 1]``
    :param horizon: at least 1
    :param rollouts: at least 1
    :param criterion: one of :data:`~persist_sb3.shield.criteria.CRITERIA`
    :raises ValueError: naming the one that is not
    """
    if not 0.0 < conf <= 1.0:
        raise ValueError(f"conf={conf} must be in (0, 1]")
    for name, value in (("horizon", horizon), ("rollouts", rollouts)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r} must be {', '.join(map(repr, CRITERIA))}")


def _median(steps: NDArray[np.intp], counts: NDArray[np.bool_]) -> NDArray[np.intp]:
    """
    :param steps: ``(r, k)``
    :param counts: which of them count, ``(r, k)``
    :return: their lower median, ``(r,)``; :data:`~persist_sb3.shield.decision.NONE` where none counts
    """
    ordered = np.sort(np.where(counts, steps, np.iinfo(np.intp).max), axis=1)
    number = counts.sum(axis=1)
    middle = ordered[np.arange(len(steps)), np.maximum(number - 1, 0) // 2]
    median: NDArray[np.intp] = np.where(number > 0, middle, NONE)
    return median
