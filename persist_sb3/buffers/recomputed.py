"""
What an off-policy learner is paid for transitions of long ago: as it would be now, not as it was.

A bonus is a function of a transition and of models that go on learning. A replay buffer that keeps the sum of all
rewards keeps the bonus of the day: what has long lost its novelty is still advertised as new. These buffers keep the
reward without the bonus, and score the transitions of each batch with the models of the moment. The same with terms
whose weight a callback leads, a price by its Lagrange multiplier or the homeostat by the stages of a curriculum: what
is kept is the whole term, and the weight is that of the moment.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer

from persist_sb3.batch import Batch, tree_map
from persist_sb3.buffers.drawn import Drawn, DrawnReplayBuffer
from persist_sb3.buffers.replay import ExecutedActionReplayBuffer
from persist_sb3.buffers.transitions import TransitionStore
from persist_sb3.curriculum import StageInForce
from persist_sb3.intrinsic.bonus import Bonus, Moves
from persist_sb3.lagrange import Multiplier

TERM = "intrinsic"


class RecomputedBonusReplayBuffer(DrawnReplayBuffer):
    """
    SB3's replay buffer for environments with bonus layers (``RNDBonus``, ``SurpriseBonus``, ``EmpowermentBonus``), or
    with a reward whose weights a callback leads (``LagrangeCallback``, or the ``homeo_factor`` of
    ``CurriculumCallback``). It splits the reward into what will be recomputed, :attr:`bonuses`, and the rest,
    :attr:`rewards`. A batch has ``rest + sum(weight * unit * score) + sum(factor * term)``, by the models, units and
    schedules of the moment it is drawn at, the bonuses times the ``intr_factor`` of a curriculum's stage, and the whole
    terms ``cost`` and ``homeo`` times the multiplier or ``homeo_factor`` of the moment.

    The callbacks of this package bind it to the layers and models at the beginning of training. Which transitions are
    drawn is what SB3's buffer would draw. Saved, it is without the models; those are saved with the policy.

    :param buffer_size: most transitions kept
    :param observation_space: of one environment
    :param action_space: of one environment
    :param args: what else SB3's buffer takes
    :param kwargs: what else SB3's buffer takes
    :raises TypeError: if the observations are of another kind than the class is for, or memory usage is to be
        optimised, which loses the last observations of episodes
    """

    #: The part of each reward that will be recomputed, as it was at the time, ``(buffer_size, n_envs)``.
    bonuses: NDArray[np.float32]
    _paid: Sequence[tuple[float, Bonus]] | None = None
    _parts: Mapping[str, Any] | None = None
    _store: TransitionStore | None = None

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)
        self.bonuses = np.zeros_like(self.rewards)
        self._internal: NDArray[np.float32] | None = None
        # Reward terms by name, as they are at a weight of 1, each (buffer_size, n_envs).
        self._terms: dict[str, NDArray[np.float32]] = {}

    def bind(self, paid: Sequence[tuple[float, Bonus]], parts: Mapping[str, Any], store: TransitionStore) -> None:
        """
        Take what the layers pay, and the models that they pay by.

        :param paid: weight and kind of each bonus
        :param parts: the shared parts, by name
        :param store: knows the internal variables and the executed actions of the step that is being added
        """
        self._paid, self._parts, self._store = paid, parts, store

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_paid", "_parts", "_store")}

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """
        :param obs: before the step, ``(n, ...)``
        :param next_obs: after it, ``(n, ...)``
        :param action: ``(n, ...)``
        :param reward: bonuses included, ``(n,)``
        :param done: whether the episode ended, ``(n,)``
        :param infos: what the environments reported
        :raises RuntimeError: if no callback of this package has bound it, or there is nothing to recompute
        """
        step = None if self._store is None else self._store.current
        led = _factors(self._parts or {})
        if step is None or not (led or TERM in step.terms):
            raise RuntimeError(
                f"{type(self).__name__} recomputes what bonus layers pay, and "
                + (
                    "no callback has bound it: train with the layer's callback (RNDCallback, WorldModelCallback, "
                    "EmpowermentCallback)"
                    if step is None
                    else "there are none: wrap the environment in RNDBonus, SurpriseBonus or EmpowermentBonus, "
                    "lead a weight with LagrangeCallback, or use SB3's buffer"
                )
            )
        if self._internal is None:
            shape = (self.buffer_size, self.n_envs)
            self._internal, self._next_internal = np.zeros((2, *shape, step.internal.shape[1]), dtype=np.float32)
            self._done_actions = np.zeros((*shape, *step.executed_action.shape[1:]), dtype=step.executed_action.dtype)
        bonus = step.terms.get(TERM, np.zeros(self.n_envs))
        for name in led:
            # What was stored without it has it in the rest.
            self._terms.setdefault(name, np.zeros_like(self.rewards))[self.pos] = [
                info["whole_terms"][name] for info in infos
            ]
            bonus = bonus + step.terms[name]
        self.bonuses[self.pos] = bonus
        self._internal[self.pos] = step.internal
        self._next_internal[self.pos] = step.next_internal
        self._done_actions[self.pos] = step.executed_action
        super().add(obs, next_obs, action, reward - bonus, done, infos)

    def bonus(self, rows: NDArray[np.intp], slots: NDArray[np.intp]) -> NDArray[np.float64]:
        """
        :param rows: of the buffer, ``(b,)``
        :param slots: which environment's, ``(b,)``
        :return: the sum of all bonuses and led terms of these transitions, as they would be paid now, ``(b,)``
        :raises RuntimeError: if no callback of this package has bound it, or nothing leads a term any more that was led
            when it was stored
        """
        if self._paid is None or self._parts is None or self._internal is None:
            raise RuntimeError(f"{type(self).__name__} knows no models: it is bound when training begins")
        moves = Moves(
            _pick(self.observations, rows, slots),
            self._internal[rows, slots].astype(np.float64),
            self._done_actions[rows, slots],
            _pick(self.next_observations, rows, slots),
            self._next_internal[rows, slots].astype(np.float64),
        )
        total = np.zeros(len(rows))
        for weight, kind in self._paid:
            unit = kind.unit(self._parts)
            if weight * unit:
                total += weight * unit * kind.score(self._parts, moves)
        stage, factors = self._parts.get("curriculum"), _factors(self._parts)
        if stage is not None:
            total *= stage.demands.intr_factor
        for name, term in self._terms.items():
            if name not in factors:
                raise RuntimeError(
                    f"the weight of the reward term {name!r} was led by a callback when these transitions were stored, "
                    "and now by none: go on with the same LagrangeCallback or CurriculumCallback"
                )
            total += factors[name] * term[rows, slots]
        return total

    def _drawn(self, rows: NDArray[np.intp], slots: NDArray[np.intp]) -> Drawn:
        drawn = super()._drawn(rows, slots)
        return drawn._replace(reward=drawn.reward + self.bonus(rows, slots).astype(np.float32))


def _factors(parts: Mapping[str, Any]) -> dict[str, float]:
    """
    :param parts: the shared parts, by name
    :return: what callbacks weigh terms of the reward with now, by term
    """
    multiplier: Multiplier | None = parts.get("lagrange")
    stage: StageInForce | None = parts.get("curriculum")
    factors = {} if multiplier is None else {multiplier.term: float(multiplier.value)}
    if stage is not None and stage.leads_homeostat:
        factors["homeo"] = stage.demands.homeo_factor
    return factors


def _pick(leaves: Batch, rows: NDArray[np.intp], slots: NDArray[np.intp]) -> Batch:
    """
    :param leaves: observations, ``(buffer_size, n_envs, ...)``
    :param rows: ``(b,)``
    :param slots: ``(b,)``
    :return: ``(b, ...)``
    """
    return tree_map(lambda leaf: leaf[rows, slots], leaves)


class RecomputedBonusDictReplayBuffer(RecomputedBonusReplayBuffer, DictReplayBuffer):
    """
    The same for Dict observations. It takes the same parameters.
    """


class ExecutedActionRecomputedBonusReplayBuffer(ExecutedActionReplayBuffer, RecomputedBonusReplayBuffer):
    """
    Both: :class:`~persist_sb3.buffers.ExecutedActionReplayBuffer`, with bonuses recomputed. The transition that is
    scored is the one that took place, whatever the learner is shown.
    """


class ExecutedActionRecomputedBonusDictReplayBuffer(  # type: ignore[misc]
    ExecutedActionReplayBuffer, RecomputedBonusDictReplayBuffer
):
    """
    The same for Dict observations. It takes the same parameters.
    """
