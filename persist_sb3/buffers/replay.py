"""
What an off-policy learner sees of a shielded environment: the action that was executed, the proposed one, or both.

The shielded environment is a Markov decision process of its own: propose ``a``, and the shield's ``phi(s, a)`` is
executed, at the price ``c`` (the intervention penalty) where that is another action. A step on which the shield
intervened is a sample of it in two ways (Krasowski et al., Provably Safe Reinforcement Learning, TMLR 2023, compare the
learning tuples):

- ``(s, a, r - c, s')``: what proposing ``a`` led to;
- ``(s, phi(s, a), r, s')``: what proposing the executed action would have led to, since a shield lets pass what it
  chooses itself. It costs nothing, and it is true of the environment without the shield as well.
"""

from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from persist_sb3.buffers.drawn import require_kind
from persist_sb3.buffers.nstep import NStepDictReplayBuffer

LearnFrom = Literal["executed", "proposed", "both"]

#: Scaled actions that differ by less are the same: converting between units rounds.
ROUNDING = 1e-5


class ExecutedActionReplayBuffer(ReplayBuffer):
    """
    SB3's replay buffer for shielded environments. Where an info has ``executed_action`` (in the units of the action
    space), that is what was executed; where it has none, the proposed action was. An intervention is what
    ``info["intervened"]`` calls one, or else a step whose executed action is not the proposed one.

    ``learn_from`` says what each step teaches:

    - ``"executed"``: the executed action. What the proposed one would be worth is left to generalisation.
    - ``"proposed"``: the proposed action, less the penalty on an intervention. The shield is a part of the environment.
    - ``"both"``: on an intervention, either of these with equal chance whenever the step is sampled. So a step counts
      once, whether or not the shield intervened, and the distribution of states stays that of the other two.

    The penalty belongs to the proposal. To subtract it from the executed action's reward would punish the safe action
    for the unsafe one, and is refused.

    :param buffer_size: most transitions kept
    :param observation_space: of one environment
    :param action_space: of one environment
    :param args: what else SB3's buffer takes
    :param learn_from: ``"executed"``, ``"proposed"`` or ``"both"``
    :param intervention_penalty: ``c``, in units of the reward before ``VecNormalize``, at least 0
    :param kwargs: what else SB3's buffer takes
    :raises TypeError: if a parameter is out of its range, the observations are of another kind than the class is for,
        or a penalty is asked for that nothing would pay
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *args: Any,
        learn_from: LearnFrom = "executed",
        intervention_penalty: float = 0.0,
        **kwargs: Any,
    ) -> None:
        require_kind(type(self), observation_space)
        if learn_from not in get_args(LearnFrom):
            raise TypeError(f"learn_from={learn_from!r} must be one of {', '.join(map(repr, get_args(LearnFrom)))}")
        if not 0.0 <= intervention_penalty < np.inf:
            raise TypeError(f"intervention_penalty={intervention_penalty} must be at least 0 and finite")
        if intervention_penalty and learn_from == "executed":
            raise TypeError(
                f"intervention_penalty={intervention_penalty} would punish the executed, safe action for the proposed "
                "one: learn_from='both' or 'proposed' lets the proposed action pay, or leave the penalty out"
            )
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)
        self.learn_from = learn_from
        self.intervention_penalty = intervention_penalty
        #: Steps on which the shield intervened, of all environments together.
        self.interventions = 0
        self._low, self._high = _limits(action_space)
        self._centre, self._half = np.zeros(1), np.ones(1)
        if isinstance(action_space, spaces.Box):
            # SB3 stores Box actions scaled to [-1, 1].
            low, high = (limit.ravel().astype(np.float64) for limit in (action_space.low, action_space.high))
            self._centre, self._half = (high + low) / 2.0, (high - low) / 2.0
        self._width = self.action_dim
        if learn_from == "both":
            # A row holds what was executed, what was proposed, and whether the shield intervened, so that SB3's own
            # indexing picks all three.
            self.action_dim = 2 * self._width + 1
            self.actions = np.zeros((self.buffer_size, self.n_envs, self.action_dim), dtype=self.actions.dtype)

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
        :raises RuntimeError: if an executed action is not in the action space
        """
        proposed = action.reshape(self.n_envs, self._width)
        executed, moved = self._executed(proposed, infos)
        intervened = np.array(
            [info.get("intervened", other) for info, other in zip(infos, moved.tolist(), strict=True)]
        )
        self.interventions += int(intervened.sum())
        if self.learn_from == "both":
            action = np.concatenate([executed, proposed, intervened[:, None]], axis=1)
        elif self.learn_from == "proposed":
            reward = reward - self.intervention_penalty * intervened
        else:
            action = executed
        super().add(obs, next_obs, action, reward, done, infos)

    def _executed(self, proposed: NDArray[Any], infos: list[dict[str, Any]]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """
        :param proposed: as SB3 stores it, ``(n, A)``
        :param infos: what the environments reported
        :return: what was executed, as SB3 stores it, ``(n, A)``, and where that is something else, ``(n,)``
        """
        moved = np.zeros(len(proposed), dtype=bool)
        where = [slot for slot, info in enumerate(infos) if "executed_action" in info]
        if not where:
            return proposed, moved
        slots = np.array(where)
        rows = np.array([infos[slot]["executed_action"] for slot in where], dtype=np.float64).reshape(len(where), -1)
        rows = (rows - self._centre) / self._half
        # Negated, as NaN fails the comparison too.
        outside = ~((rows >= self._low - ROUNDING) & (rows <= self._high + ROUNDING)).all(axis=1)
        if outside.any():
            slot = where[int(outside.argmax())]
            raise RuntimeError(
                f"info['executed_action'] of environment {slot} is {infos[slot]['executed_action']!r}, which is not in "
                f"{self.action_space}: whoever replaces actions must publish them in the units of the action space"
            )
        changed = (np.abs(rows - proposed[slots]) > ROUNDING).any(axis=1)
        moved[slots] = changed
        executed = proposed.copy()
        executed[slots[changed]] = rows[changed]
        return executed, moved

    def _get_samples(self, batch_inds: NDArray[np.intp], env: VecNormalize | None = None) -> ReplayBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        if self.learn_from != "both":
            return samples
        executed, proposed, intervened = samples.actions.split((self._width, self._width, 1), dim=1)
        # From NumPy's global generator, as SB3 draws its batches.
        heads = self.to_torch(np.random.random((len(batch_inds), 1)) < 0.5)  # noqa: NPY002
        pays = (intervened > 0) & heads
        (penalty,) = self._normalize_reward(np.array([self.intervention_penalty], dtype=np.float32), env)
        return samples._replace(
            actions=torch.where(pays, proposed, executed), rewards=samples.rewards - float(penalty) * pays
        )


class ExecutedActionDictReplayBuffer(ExecutedActionReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """
    The same for Dict observations. It takes the same parameters.
    """


class ExecutedActionNStepReplayBuffer(ExecutedActionReplayBuffer, NStepReplayBuffer):
    """
    The same with n-step returns. It takes the same parameters, and ``n_steps`` and ``gamma``, which SB3 sets for its
    own buffer only: ``replay_buffer_kwargs: {n_steps: 3, gamma: 0.99}``, with the algorithm's ``gamma``. With
    ``learn_from="both"`` only the first of the ``n`` steps can be a proposal that pays; the others are as executed.
    """


class ExecutedActionNStepDictReplayBuffer(ExecutedActionReplayBuffer, NStepDictReplayBuffer):  # type: ignore[misc]
    """
    The same for Dict observations. It takes the same parameters.
    """


def _limits(space: spaces.Space[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    :param space: of actions: Box, Discrete, MultiDiscrete or MultiBinary, as SB3's buffers demand
    :return: least and greatest value of each entry, as SB3 stores it, ``(A,)`` each
    """
    if isinstance(space, spaces.Box):
        return np.full(spaces.flatdim(space), -1.0), np.ones(spaces.flatdim(space))
    if isinstance(space, spaces.Discrete):
        return np.array([float(space.start)]), np.array([float(space.start + space.n - 1)])
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.ravel().astype(np.float64), (space.start + space.nvec - 1.0).ravel()
    return np.zeros(spaces.flatdim(space)), np.ones(spaces.flatdim(space))
