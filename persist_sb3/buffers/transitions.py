"""What happened in the environments, read from SB3 once a step and kept for the models that learn from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from persist_sb3.batch import Batch, stack, take, tree_map, with_rows
from persist_sb3.buffers.sequences import draw_windows
from persist_sb3.infos import ListInfos, episode_ends, reset_source

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
    :param done: either, ``(n,)`` bool; in a trial of several lives, of ``VecTrials``, it tells where a life ended
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


class Sequences(NamedTuple):
    """
    Stretches of ``b`` episodes, each in one environment and without a gap.

    :param transitions: each with the axes ``(b, length, ...)``
    :param valid: which rows are true; behind a stretch that ends early, its last row is repeated, ``(b, length)`` bool
    :param is_first: whether a stretch begins with the first step of its episode that was read, ``(b,)`` bool; where it
        does not, something went before
    :param ages: how many transitions were written after each, as :meth:`TransitionStore.recall` takes them,
        ``(b, length)``
    """

    transitions: Transitions
    valid: NDArray[np.bool_]
    is_first: NDArray[np.bool_]
    ages: NDArray[np.intp]


_FIELDS = tuple(field.name for field in fields(Transitions))


def as_batch(transitions: Transitions) -> dict[str, Batch]:
    """
    :param transitions: ``n`` of them
    :return: their columns by name, without copying
    """
    return {name: getattr(transitions, name) for name in _FIELDS}


def concatenate(parts: Sequence[Transitions]) -> Transitions:
    """
    :param parts: of the same environment, though perhaps of other layers
    :return: all rows, in this order; a reward term that a part does not report is NaN there
    """
    names = dict.fromkeys(name for part in parts for name in part.terms)
    columns = [
        {**as_batch(part), "terms": {name: part.terms.get(name, np.full(len(part), np.nan)) for name in names}}
        for part in parts
    ]
    return Transitions(**tree_map(lambda *leaves: np.concatenate(leaves), *columns))


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
    and everyone gets the same. The last ``capacity`` are kept in a ring, once a callback has asked for that. Those of
    demonstrations are kept beside the ring, for good.
    """

    def __init__(self) -> None:
        #: Steps (of all environments at once) read since the environments were last reset as a whole.
        self.steps = 0
        self.capacity = 0
        #: Transitions written to the ring so far, those included that it has forgotten.
        self.written = 0
        self._memory: Batch = None
        # Of each row of the ring: whether it is the first of its episode that was read.
        self._first = np.empty(0, dtype=np.bool_)
        self._position = 0
        self._size = 0
        self._demonstrations: list[Transitions] = []
        self._demonstrated: Batch = None
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
        self._resets = reset_source(env)
        self._observation: Batch = _own(self._normalizer.old_obs if self._normalizer else model._last_obs)
        self._internal = np.array(_column(self._resets.reset_infos, "internal"), dtype=np.float64)
        self._current = None
        self._begins = np.ones(env.num_envs, dtype=np.bool_)
        self.steps = 0

    @property
    def current(self) -> Transitions | None:
        """The transitions of the step that was read last, ``(num_envs, ...)``; None before the first."""
        return self._current

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
        self._begins = self._current.done
        return self._current

    def _parse(self, local_variables: Mapping[str, Any], reset: NDArray[np.bool_]) -> Transitions:
        infos: Sequence[Info] = local_variables["infos"]
        dones = episode_ends(reset, infos)
        # On-policy algorithms keep the unclipped action under "actions".
        action = local_variables.get("clipped_actions", local_variables["actions"])
        rewards = self._rewards.old_reward if self._rewards else local_variables["rewards"]
        new_observation = _own(self._normalizer.old_obs if self._normalizer else local_variables["new_obs"])
        internal = _internal(infos)
        cost = _column(infos, "cost") if "cost" in infos[0] else [np.nan] * len(infos)
        next_observation, next_begin = new_observation, internal
        terminated = truncated = dones
        if np.count_nonzero(dones):
            ended = dones.nonzero()[0]
            last = [infos[slot] for slot in ended.tolist()]
            truncated = np.zeros_like(dones)
            truncated[ended] = [info.get("TimeLimit.truncated", False) for info in last]
            terminated = dones & ~truncated
            next_observation = with_rows(new_observation, ended, self._last_observations(last, reset[ended]))
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

    def _last_observations(self, infos: Sequence[Info], reset: NDArray[np.bool_]) -> Batch:
        """
        :param infos: where an episode ended, ``k`` of them
        :param reset: where the environments reported that, ``(k,)``: VecNormalize normalises no other last observation
        :return: the last observations, ``(k, ...)``
        """
        last = stack([info["terminal_observation"] for info in infos])
        if self._normalizer is None:
            return last
        normalized = np.flatnonzero(reset)
        return with_rows(last, normalized, self._normalizer.unnormalize_obs(take(last, normalized)))

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
        kept = None if self._memory is None else (take(self._memory, oldest_first), self._first[oldest_first])
        self.capacity, self._memory, self._position, self._size = capacity, None, 0, 0
        if kept is not None:
            self._write(*kept)

    def _remember(self, transitions: Transitions) -> None:
        self._write(as_batch(transitions), self._begins)
        self.written += len(transitions)

    def _write(self, rows: Batch, first: NDArray[np.bool_]) -> None:
        count = len(first)
        self.capacity = max(self.capacity, count)
        if self._memory is None:
            self._memory = tree_map(lambda leaf: np.empty((self.capacity, *leaf.shape[1:]), leaf.dtype), rows)
            self._first = np.empty(self.capacity, dtype=np.bool_)
        where: Any = slice(self._position, self._position + count)
        if where.stop > self.capacity:
            where = (self._position + np.arange(count)) % self.capacity
        tree_map(lambda memory, leaf: memory.__setitem__(where, leaf), self._memory, rows)
        self._first[where] = first
        self._position = (self._position + count) % self.capacity
        self._size = min(self._size + count, self.capacity)

    def preload(self, demonstrations: Transitions) -> None:
        """
        Keep transitions from before, beside the ring and for good. Preloading the same ones again changes nothing, so
        every callback may ask for those that it needs.

        :param demonstrations: of an environment with these observations, actions and internal variables, ``(n, ...)``;
            their rewards are those of the layers that they were recorded with
        :raises RuntimeError: before :meth:`attach`
        :raises TypeError: if they are of another environment
        """
        if self._env is None:
            raise RuntimeError("the store does not know its environments yet: call attach(model) before preload")
        seen = _as_seen(demonstrations, self._observation, self._internal, self._env)
        if not any(_same(known, seen) for known in self._demonstrations):
            self._demonstrations.append(seen)
            self._demonstrated = as_batch(concatenate(self._demonstrations))

    @property
    def demonstrated(self) -> int:
        """Number of transitions preloaded."""
        return 0 if self._demonstrated is None else len(self._demonstrated["reward"])

    def sample(self, batch_size: int, generator: np.random.Generator, demonstration_share: float = 0.0) -> Transitions:
        """
        :param batch_size: how many, ``b``
        :param generator: decides which
        :param demonstration_share: part of the batch that is drawn from the preloaded transitions, in ``[0, 1]``, and
            comes last; with 1 nothing need have been experienced yet
        :return: transitions drawn uniformly, with replacement, ``(b, ...)``
        :raises ValueError: if the share is out of its range
        :raises RuntimeError: if nothing has been kept, or preloaded, that could be drawn
        """
        shown = self._shown(batch_size, demonstration_share)
        parts = []
        if shown < batch_size or not shown:
            self._require_rows()
            rows = generator.integers(self._size, size=batch_size - shown)
            parts.append(Transitions(**take(self._memory, rows)))
        if shown:
            rows = generator.integers(self.demonstrated, size=shown)
            parts.append(Transitions(**take(self._demonstrated, rows)))
        return parts[0] if len(parts) == 1 else concatenate(parts)

    def _shown(self, batch_size: int, share: float) -> int:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"demonstration_share={share} must be in [0, 1]")
        if share and not self.demonstrated:
            raise RuntimeError(f"demonstration_share={share}, but there are no demonstrations: call preload first")
        return round(share * batch_size)

    def sample_sequences(self, batch_size: int, length: int, generator: np.random.Generator) -> Sequences:
        """
        Stretches of episodes, for models with a memory. Every transition is drawn with the same probability, and then a
        stretch about it, which keeps to its environment and its episode; it is shorter than ``length`` only where the
        episode is, or what the store still has of it. Demonstrations are not drawn: they are no episodes any more.

        :param batch_size: how many, ``b``
        :param length: of each
        :param generator: decides which
        :return: the stretches
        :raises ValueError: if ``length`` is below 1
        :raises RuntimeError: if nothing has been kept
        """
        if length < 1:
            raise ValueError(f"length={length} must be at least 1")
        self._require_rows()
        windows = draw_windows(
            self._first, self._position, self._size, len(self._begins), batch_size, length, generator
        )
        rows = (self._position - 1 - windows.ages) % self.capacity
        return Sequences(Transitions(**take(self._memory, rows)), windows.valid, self._first[rows[:, 0]], windows.ages)

    def _require_rows(self) -> None:
        if not self._size:
            raise RuntimeError("no transition is kept: call reserve(capacity) first, and sample after a step")

    def recall(self, ages: NDArray[np.intp]) -> Transitions:
        """
        :param ages: how many transitions were written after the one that is meant, each below ``len(self)``, ``(b,)``
        :return: those transitions, ``(b, ...)``
        """
        return Transitions(**take(self._memory, (self._position - 1 - ages) % self.capacity))

    def __len__(self) -> int:
        """Number of transitions kept."""
        return self._size


def _own(observation: Batch) -> Batch:
    """
    :param observation: as the environments returned it
    :return: the same arrays in a dict of its own: SB3's DictReplayBuffer replaces entries of the environments'
    """
    return tree_map(lambda leaf: leaf, observation)


def _internal(infos: Sequence[Info]) -> NDArray[np.float64]:
    """
    :param infos: one an environment
    :return: internal variables ``x``, ``(n, d)``
    :raises RuntimeError: if one lacks them
    """
    rows = _column(infos, "internal")
    published = infos.published("internal", rows) if isinstance(infos, ListInfos) else None
    return np.array(rows, dtype=np.float64) if published is None else published


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
        told = _column(infos, "reward_terms")
        values = [terms[name] for name in names for terms in told]
    except KeyError as error:
        raise RuntimeError(
            f"info['reward_terms'] of one environment lacks {error}, which environment 0 reports: all of them must be "
            "wrapped in the same layers"
        ) from error
    return dict(zip(names, np.array(values, dtype=np.float64).reshape(len(names), -1), strict=True))


def _same(one: Transitions, other: Transitions) -> bool:
    """
    :param one: transitions
    :param other: others
    :return: whether they are the same rows, as far as their rewards and internal variables tell
    """
    columns = ("reward", "internal", "next_internal")
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in columns)


def _as_seen(
    demonstrations: Transitions, observation: Batch, internal: NDArray[np.float64], env: VecEnv
) -> Transitions:
    """
    :param demonstrations: transitions from before
    :param observation: what the environments show now, ``(n, ...)``
    :param internal: their internal variables, ``(n, d)``
    :param env: the environments
    :return: the same in the environments' own number formats
    :raises TypeError: if they are of another environment
    """

    def matched(name: str, rows: Batch, like: Batch) -> Batch:
        if _shapes(rows) != _shapes(like):
            raise TypeError(
                f"the demonstrations' {name} is {_shapes(rows)}, but that of the environments is {_shapes(like)}: "
                "record them with the layers around the environment that it is trained with"
            )
        return tree_map(lambda leaf, own: leaf.astype(own.dtype, casting="same_kind", copy=False), rows, like)

    action = np.zeros((1, *(env.action_space.shape or ())), env.action_space.dtype)
    return replace(
        demonstrations,
        observation=matched("observation", demonstrations.observation, observation),
        next_observation=matched("observation", demonstrations.next_observation, observation),
        action=matched("action", demonstrations.action, action),
        executed_action=matched("action", demonstrations.executed_action, action),
        internal=matched("internal state", demonstrations.internal, internal),
        next_internal=matched("internal state", demonstrations.next_internal, internal),
    )


def _shapes(batch: Batch) -> Any:
    return tree_map(lambda leaf: leaf.shape[1:], batch)
