"""A replay buffer whose batches can be changed before they are normalised."""

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from persist_sb3.batch import Batch, tree_map


class Drawn(NamedTuple):
    """
    A batch as the environments made it, before ``VecNormalize`` and torch.

    :param observation: ``(b, ...)``
    :param action: as SB3 stores it, ``(b, A)``
    :param next_observation: ``(b, ...)``
    :param over: whether nothing follows, 1.0 or 0.0, ``(b,)``
    :param reward: ``(b,)``
    """

    observation: Batch
    action: NDArray[Any]
    next_observation: Batch
    over: NDArray[np.floating]
    reward: NDArray[np.float32]


class DrawnReplayBuffer(ReplayBuffer):
    """
    SB3's replay buffer, drawn as SB3 draws it. A subclass changes what was drawn in :meth:`_drawn`.

    :param buffer_size: most transitions kept
    :param observation_space: of one environment
    :param action_space: of one environment
    :param args: what else SB3's buffer takes
    :param kwargs: what else SB3's buffer takes
    :raises TypeError: if the observations are of another kind than the class is for, or memory usage is to be
        optimised, which loses the last observations of episodes
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        require_kind(type(self), observation_space)
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)
        if self.optimize_memory_usage:
            raise TypeError(
                f"optimize_memory_usage=True keeps no last observation of an episode, which {type(self).__name__} needs"
            )

    def _drawn(self, rows: NDArray[np.intp], slots: NDArray[np.intp]) -> Drawn:
        """
        :param rows: of the buffer, ``(b,)``
        :param slots: which environment's, ``(b,)``
        :return: these transitions, in arrays that nobody else has
        """
        return Drawn(
            tree_map(lambda leaf: leaf[rows, slots], self.observations),
            self.actions[rows, slots],
            tree_map(lambda leaf: leaf[rows, slots], self.next_observations),
            self.dones[rows, slots] * (1.0 - self.timeouts[rows, slots]),
            self.rewards[rows, slots],
        )

    def _get_samples(self, batch_inds: NDArray[np.intp], env: VecNormalize | None = None) -> Any:
        # As SB3 draws them, and nothing else.
        slots = np.random.randint(0, high=self.n_envs, size=len(batch_inds))  # noqa: NPY002
        drawn = self._drawn(batch_inds, slots)
        kind = DictReplayBufferSamples if isinstance(self, DictReplayBuffer) else ReplayBufferSamples
        seen, following = (
            tree_map(self.to_torch, self._normalize_obs(observation, env))
            for observation in (drawn.observation, drawn.next_observation)
        )
        return kind(
            seen,
            self.to_torch(drawn.action),
            following,
            self.to_torch(drawn.over[:, None]),
            self.to_torch(self._normalize_reward(drawn.reward[:, None], env)),
        )


def require_kind(buffer: type[ReplayBuffer], observation_space: spaces.Space[Any]) -> None:
    """
    :param buffer: class of a buffer, of the two that differ by ``Dict`` in their names
    :param observation_space: what it is to keep
    :raises TypeError: if the other one is made for that
    """
    nested, name = issubclass(buffer, DictReplayBuffer), buffer.__name__
    if nested != isinstance(observation_space, spaces.Dict):
        other = name.replace("Dict", "") if nested else name.replace("ReplayBuffer", "DictReplayBuffer")
        raise TypeError(
            f"{name} does not keep observations of {observation_space}: use {other}, "
            f"with{'out' if nested else ''} 'Dict' in its name"
        )
