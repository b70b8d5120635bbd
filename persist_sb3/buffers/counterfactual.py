"""
Replay in which some transitions are told as they would have been with other internal variables.

An agent that seldom dies seldom learns what kills, and critics that know little of death let the policy climb toward
it. A transition that was survived tells of one that would not have been: see
:class:`~persist_sb3.counterfactuals.Counterfactuals`. The learner gets these beside those that took place.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer

from persist_sb3.batch import take, with_rows
from persist_sb3.buffers.drawn import Drawn, DrawnReplayBuffer
from persist_sb3.buffers.replay import ExecutedActionReplayBuffer
from persist_sb3.counterfactuals import Counterfactuals
from persist_sb3.homeostat import Pay
from persist_sb3.models.spec import StateSpec
from persist_sb3.viability import ViabilitySet


class CounterfactualReplayBuffer(ExecutedActionReplayBuffer, DrawnReplayBuffer):
    """
    :class:`~persist_sb3.buffers.ExecutedActionReplayBuffer`, and in each batch a share of the transitions with other
    internal variables: drawn anew inside the limits, with the step's outcome, ``HomeostatReward`` and death as they
    would have been. The rest of the observation, of the reward and of the next observation is as it was.

    How variables change is learned as soon as there are enough transitions, and anew as they become more; until then
    the change is taken to be what it was. The observation must show every internal variable. The callbacks of this
    package bind it to the constraints and the homeostat at the beginning of training.

    Of a proposal nobody knows what the shield would have made of it with other internal variables. So these are told of
    the executed action, also with ``learn_from="both"``, and ``learn_from="proposed"`` is refused.

    :param buffer_size: most transitions kept
    :param observation_space: of one environment
    :param action_space: of one environment
    :param args: what else SB3's buffer takes
    :param counterfactual_share: part of each batch, in ``[0, 1]``
    :param violations_terminate: whether the environment ends an episode that violates a constraint. Default: as long as
        no episode was seen to go on after a violation
    :param kwargs: what else ``ExecutedActionReplayBuffer`` takes
    :raises TypeError: if a parameter is out of its range, the observations are of another kind than the class is for,
        or ``learn_from="proposed"``
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *args: Any,
        counterfactual_share: float = 0.5,
        violations_terminate: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)
        if not 0.0 <= counterfactual_share <= 1.0:
            raise TypeError(f"counterfactual_share={counterfactual_share} must be in [0, 1]")
        if self.learn_from == "proposed":
            raise TypeError(
                "learn_from='proposed' tells of every step what became of the proposal, and with other internal "
                "variables the shield would have made something else of it: use learn_from='executed' or 'both'"
            )
        self.counterfactual_share = counterfactual_share
        self.violations_terminate = violations_terminate
        self._worlds: Counterfactuals | None = None
        self._pay: Pay | None = None
        # Kept with the buffer, unlike what the environments declare.
        self._learned: dict[str, Any] | None = None
        self._goes_on = False
        self._added = 0

    def bind(self, viability: ViabilitySet, entries: Mapping[str, str], pay: Pay | None) -> None:
        """
        Take what the environments declare. To be bound again changes nothing that was learned.

        :param viability: the constraints
        :param entries: where the observation shows each internal variable, by name
        :param pay: of ``HomeostatReward``; None where there is none
        :raises RuntimeError: if the observation does not show every internal variable as a number
        """
        spec = StateSpec(self.observation_space, self.action_space, viability)
        try:
            self._worlds = Counterfactuals(spec, entries, self._learned)
        except ValueError as error:
            raise RuntimeError(f"{type(self).__name__} shows the learner other internal variables: {error}") from error
        self._pay = pay

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_worlds": None, "_pay": None}

    def _require_bound(self) -> Counterfactuals:
        if self._worlds is None:
            raise RuntimeError(
                f"{type(self).__name__} knows no constraints, since no callback has bound it: train with one of "
                "persist_sb3.callbacks, MetricsCallback for instance"
            )
        return self._worlds

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
        :param action: what was proposed, ``(n, ...)``; of Box actions, scaled to ``[-1, 1]``
        :param reward: ``(n,)``
        :param done: whether the episode ended, ``(n,)``
        :param infos: what the environments reported
        :raises RuntimeError: if no callback of this package has bound it, the reward has a price of violations that
            would not follow the internal variables, or an episode goes on that was to be over
        """
        self._require_bound()
        if "cost" in infos[0].get("reward_terms", ()):
            raise RuntimeError(
                f"{type(self).__name__} knows what HomeostatReward pays, and not what CostPenalty takes: use the "
                "death_penalty of HomeostatReward instead"
            )
        # As it was judged, and not by what the observation shows of it in fewer digits.
        goes_on = np.array([info.get("cost", 0.0) > 0.0 for info in infos]) & ~done.astype(bool)
        if goes_on.any():
            if self.violations_terminate:
                raise RuntimeError(
                    f"environment {int(goes_on.argmax())} violates a constraint and its episode goes on, but "
                    f"{type(self).__name__}(violations_terminate=True) takes violations for deaths: leave the "
                    "parameter out, or end episodes with TerminateOnViolation"
                )
            self._goes_on = True
        super().add(obs, next_obs, action, reward, done, infos)
        self._added += self.n_envs

    def _learn(self) -> None:
        """Find out how internal variables change, from transitions drawn at random."""
        worlds, kept = self._require_bound(), self.size() * self.n_envs
        count = worlds.due(kept, self._added)
        if not count:
            return
        # From NumPy's global generator, as SB3 draws its batches.
        drawn = np.random.choice(kept, count, replace=False)  # noqa: NPY002
        real = super()._drawn(*np.divmod(drawn, self.n_envs))
        executed = real.action[:, : self._width]
        action = executed.reshape(len(drawn), *(self.action_space.shape or ()))
        encoded = executed if worlds.spec.continuous else worlds.spec.encode_action(action)
        worlds.learn(real.observation, encoded, real.next_observation, seen=self._added)
        self._learned = worlds.state_dict()

    def _drawn(self, rows: NDArray[np.intp], slots: NDArray[np.intp]) -> Drawn:
        drawn, worlds = super()._drawn(rows, slots), self._require_bound()
        changed = np.arange(round(self.counterfactual_share * len(rows)))
        if not len(changed):
            return drawn
        self._learn()
        before, after = take(drawn.observation, changed), take(drawn.next_observation, changed)
        x, x_next = worlds.read(before), worlds.read(after)
        # From NumPy's global generator, as SB3 draws its batches.
        told = worlds.retell(before, after, x, x_next, np.random.random((2, *x.shape)))  # noqa: NPY002
        if self.learn_from == "both":
            # As if the shield had not intervened: the executed action is told.
            drawn.action[changed, -1] = 0.0
        if self._pay is not None:
            homeostat, weight = self._pay
            drawn.reward[changed] += weight * (
                homeostat.reward(told.x, told.x_next, told.dies) - homeostat.reward(x, x_next, told.died)
            )
        if not self._goes_on and self.violations_terminate is not False:
            drawn.over[changed] = told.ends(drawn.over[changed] > 0.0)
        return drawn._replace(
            observation=with_rows(drawn.observation, changed, told.observation),
            next_observation=with_rows(drawn.next_observation, changed, told.next_observation),
        )


class CounterfactualDictReplayBuffer(CounterfactualReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """
    The same for Dict observations. It takes the same parameters.
    """
