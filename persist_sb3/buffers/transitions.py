"""What happened in the environments, read from SB3 once a step and kept for the models that learn from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize

from persist_sb3.batch import Batch, stack, take, tree_map, with_rows

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

Info = dict[str, Any]


@dataclass(slots=True)
class Transitions:
    """
    ``n`` transitions, a row each: those of one step of ``n`` environments, or a sample of them.

    :param observation: what the policy saw, before ``VecNormalize`` where that is the outermost wrapper, ``(n, ...)``
    :param next_observation: its true successor: the last observation of an episode where one ended, never the first of
        the next, ``(n, ...)``
    :param action: what the policy proposed, in the units of the action space, ``(n, ...)``
    :param executed_action: what was done: ``info["executed_action"]``, or ``action`` where there is none, ``(n, ...)``
    :param reward: what the outermost layer gave, before ``VecNormalize``, ``(n,)``
    :param terms: ``info["reward_terms"]``: what the reward consists of, ``(n,)`` each
    :param internal: internal variables ``x`` before the step, ``(n, d)``
    :param next_internal: the same after it, ``(n, d)``
    :param cost: ``info["cost"]``, 1.0 where the step violates a constraint, NaN if nobody reports it, ``(n,)``
    :param terminated: the episode ended by itself, ``(n,)`` bool
    :param truncated: the episode was cut off, ``(n,)`` bool
    :param done: either, ``(n,)`` bool
    """

    observation: Batch
    next_observation: Batch
    action: NDArray[Any]
    executed_action: NDArray[Any]
    reward: NDArray[np.float64]
    terms: dict[str, NDArray[np.float64]]
    internal: NDArray[np.float64]
    next_internal: NDArray[np.float64]
    cost: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    done: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.reward)


_FIELDS = tuple(field.name for field in fields(Transitions))


def _column(infos: Sequence[Info], key: str, slots: Sequence[int] | None = None) -> list[Any]:
    """
    :param infos: one an environment
    :param key: what to read
    :param slots: in which environments. Default: in all
    :return: its value in each
    :raises RuntimeError: if one lacks it
    """
    try:
        return [info[key] for info in infos] if slots is None else [infos[slot][key] for slot in slots]
    except KeyError:
        slot = next(slot for slot in slots or range(len(infos)) if key not in infos[slot])
        raise RuntimeError(
            f"info[{key!r}] is missing in environment {slot}; its info has {sorted(map(str, infos[slot]))}. Wrap the "
            "environment in persist_sb3.wrappers.InternalState, which publishes it at every reset and step"
        ) from None


class TransitionStore:
    """
    The transitions of one algorithm, shared by all of its callbacks: whoever asks first in a step reads them from SB3,
    and everyone gets the same. The last ``capacity`` are kept in a ring, once a callback has asked for that.
    """

    def __init__(self) -> None:
        #: Steps (of all environments at once) read since the environments were last reset as a whole.
        self.steps = 0
        self.capacity = 0
        self._memory: Batch = None
        self._position = 0
        self._size = 0
        self._env: VecEnv | None = None
        self._now = 0
        self._last_obs: Batch = None
        self._current: Transitions | None = None

    def attach(self, model: "BaseAlgorithm") -> None:
        """
        Meet the environments at the beginning of ``learn``, after SB3 has reset them (or has not, if training goes on
        where it stopped). Asking again changes nothing.

        :param model: the algorithm
        :raises RuntimeError: if the environments do not publish ``info["internal"]`` at reset
        """
        env = model.get_env()
        if env is None:
            raise RuntimeError("the model has no environment: call model.set_env(env) before learn")
        if env is self._env and model.num_timesteps == self._now and model._last_obs is self._last_obs:
            return
        self._env = env
        self._now = model.num_timesteps
        self._last_obs = model._last_obs
        # Wrappers around a VecNormalize change observations, but not rewards.
        self._normalizer = env if isinstance(env, VecNormalize) else None
        self._rewards = unwrap_vec_normalize(env)
        self._resets = self._find_resets(env)
        self._observation: Batch = self._normalizer.old_obs if self._normalizer else model._last_obs
        self._internal = np.array(_column(self._resets.reset_infos, "internal"), dtype=np.float64)
        self._current = None
        self.steps = 0

    @staticmethod
    def _find_resets(env: VecEnv) -> VecEnv:
        """
        :param env: the outermost environment
        :return: the outermost one with ``reset_infos``; most wrappers leave theirs empty
        """
        while isinstance(env, VecEnvWrapper) and not any(env.reset_infos):
            env = env.venv
        return env

    def read(self, local_variables: Mapping[str, Any]) -> Transitions:
        """
        :param local_variables: a callback's ``self.locals``, in its ``_on_step``
        :return: the transitions of this step, ``(num_envs, ...)``
        :raises RuntimeError: if a step was left out, or an info lacks what it had before
        """
        model = local_variables["self"]
        if self._current is not None and model.num_timesteps == self._now:
            return self._current
        if "infos" not in local_variables:
            raise RuntimeError(f"{type(model).__name__} does not show its steps to callbacks: use another algorithm")
        dones: NDArray[np.bool_] = local_variables["dones"]
        if model.num_timesteps != self._now + len(dones):
            raise RuntimeError(
                f"the step at timestep {self._now + len(dones)} was not read: a callback that reads transitions must "
                "be called at every step, so list it directly, not under EveryNTimesteps or another event"
            )
        self._now = model.num_timesteps
        self._last_obs = local_variables["new_obs"]
        self._current = self._parse(local_variables, dones)
        self.steps += 1
        if self.capacity:
            self._remember(self._current)
        return self._current

    def _parse(self, local_variables: Mapping[str, Any], dones: NDArray[np.bool_]) -> Transitions:
        infos: Sequence[Info] = local_variables["infos"]
        # On-policy algorithms keep the unclipped action under "actions".
        action = local_variables.get("clipped_actions", local_variables["actions"])
        rewards = self._rewards.old_reward if self._rewards else local_variables["rewards"]
        new_observation = self._normalizer.old_obs if self._normalizer else local_variables["new_obs"]
        internal = np.array(_column(infos, "internal"), dtype=np.float64)
        cost = _column(infos, "cost") if "cost" in infos[0] else [np.nan] * len(infos)
        next_observation, next_begin = new_observation, internal
        terminated = truncated = dones
        if np.count_nonzero(dones):
            ended = np.flatnonzero(dones)
            last = [infos[slot] for slot in ended.tolist()]
            truncated = np.zeros_like(dones)
            truncated[ended] = [info.get("TimeLimit.truncated", False) for info in last]
            terminated = dones & ~truncated
            next_observation = with_rows(new_observation, ended, self._last_observations(last))
            next_begin = internal.copy()
            next_begin[ended] = _column(self._resets.reset_infos, "internal", ended.tolist())
        transitions = Transitions(
            observation=self._observation,
            next_observation=next_observation,
            action=action,
            executed_action=_executed(action, infos),
            # A copy: on-policy algorithms add the value of a truncated episode's last state to theirs.
            reward=np.array(rewards, dtype=np.float64),
            terms=_terms(infos),
            internal=self._internal,
            next_internal=internal,
            cost=np.array(cost, dtype=np.float64),
            terminated=terminated,
            truncated=truncated,
            done=dones,
        )
        self._observation, self._internal = new_observation, next_begin
        return transitions

    def _last_observations(self, infos: Sequence[Info]) -> Batch:
        last = stack([info["terminal_observation"] for info in infos])
        return self._normalizer.unnormalize_obs(last) if self._normalizer else last

    def reserve(self, capacity: int) -> None:
        """
        Keep transitions from now on, and as many as the most demanding callback asks for.

        :param capacity: how many; at least one step of all environments is kept
        :raises ValueError: if it is negative
        """
        if capacity < 0:
            raise ValueError(f"capacity={capacity} must not be negative")
        if capacity <= self.capacity:
            return
        oldest_first = (self._position - self._size + np.arange(self._size)) % max(self.capacity, 1)
        kept = None if self._memory is None else take(self._memory, oldest_first)
        self.capacity, self._memory, self._position, self._size = capacity, None, 0, 0
        if kept is not None:
            self._write(kept)

    def _remember(self, transitions: Transitions) -> None:
        self._write({name: getattr(transitions, name) for name in _FIELDS})

    def _write(self, rows: Batch) -> None:
        count = len(rows["reward"])
        self.capacity = max(self.capacity, count)
        if self._memory is None:
            self._memory = tree_map(lambda leaf: np.empty((self.capacity, *leaf.shape[1:]), leaf.dtype), rows)
        where = (self._position + np.arange(count)) % self.capacity
        tree_map(lambda memory, leaf: memory.__setitem__(where, leaf), self._memory, rows)
        self._position = (self._position + count) % self.capacity
        self._size = min(self._size + count, self.capacity)

    def sample(self, batch_size: int, generator: np.random.Generator) -> Transitions:
        """
        :param batch_size: how many, ``b``
        :param generator: decides which
        :return: transitions drawn uniformly, with replacement, ``(b, ...)``
        :raises RuntimeError: if nothing has been kept yet
        """
        if not self._size:
            raise RuntimeError("no transition is kept: call reserve(capacity) first, and sample after a step")
        return Transitions(**take(self._memory, generator.integers(self._size, size=batch_size)))

    def __len__(self) -> int:
        """Number of transitions kept."""
        return self._size


def _executed(action: NDArray[Any], infos: Sequence[Info]) -> NDArray[Any]:
    executed = action
    for slot, info in enumerate(infos):
        if "executed_action" in info:
            if executed is action:
                executed = action.copy()
            executed[slot] = np.reshape(info["executed_action"], action.shape[1:])
    return executed


def _terms(infos: Sequence[Info]) -> dict[str, NDArray[np.float64]]:
    names = infos[0].get("reward_terms")
    if names is None:
        return {}
    try:
        rows = [[terms[name] for name in names] for terms in _column(infos, "reward_terms")]
    except KeyError as error:
        raise RuntimeError(
            f"info['reward_terms'] of one environment lacks {error}, which environment 0 reports: all of them must be "
            "wrapped in the same layers"
        ) from error
    return dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))
