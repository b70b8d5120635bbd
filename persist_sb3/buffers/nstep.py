"""n-step returns for Dict observations, for which SB3 has none."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize


class NStepDictReplayBuffer(DictReplayBuffer):
    """
    SB3's ``NStepReplayBuffer`` for Dict observations: a sample is a transition over ``n`` steps, with the discounted
    sum of their rewards, the state after the last of them, and the discount that its value has (Watkins, "Learning from
    delayed rewards", 1989). It is over fewer where the episode ends, or the newest transition is reached.

    The actions after the first are those that were executed then, whatever the policy would do by now: with many steps
    the returns are of older policies.

    :param args: what SB3's buffer takes
    :param n_steps: how many, ``n``
    :param gamma: discount factor, the algorithm's
    :param kwargs: what SB3's buffer takes
    :raises TypeError: if a parameter is out of its range
    """

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        if n_steps < 1:
            raise TypeError(f"n_steps={n_steps} must be at least 1")
        if not 0.0 <= gamma <= 1.0:
            raise TypeError(f"gamma={gamma} must be in [0, 1], and that of the algorithm")
        super().__init__(*args, **kwargs)
        self.n_steps = n_steps
        self.gamma = gamma

    def _get_samples(  # type: ignore[override]
        self, batch_inds: NDArray[np.intp], env: VecNormalize | None = None
    ) -> DictReplayBufferSamples:
        # From NumPy's global generator, as SB3 draws its batches.
        column = np.random.randint(0, self.n_envs, size=len(batch_inds))  # noqa: NPY002
        ahead = np.arange(self.n_steps)
        row, columns = (batch_inds[:, None] + ahead) % self.buffer_size, column[:, None]
        newest = (self.pos - 1) % self.buffer_size
        ends = (self.dones[row, columns] > 0) | (self.timeouts[row, columns] > 0) | (row == newest)
        last = np.where(ends.any(axis=1), ends.argmax(axis=1), self.n_steps - 1)[:, None]
        weight = np.where(ahead <= last, self.gamma**ahead, 0.0)
        reward = (self._normalize_reward(self.rewards[row, columns], env) * weight).sum(axis=1, keepdims=True)
        final = np.take_along_axis(row, last, axis=1)
        dead = self.dones[final, columns] * (1.0 - self.timeouts[final, columns])
        return DictReplayBufferSamples(
            observations=self._tensors(self.observations, batch_inds, column, env),
            actions=self.to_torch(self.actions[batch_inds, column]),
            next_observations=self._tensors(self.next_observations, final[:, 0], column, env),
            dones=self.to_torch(dead),
            rewards=self.to_torch(reward.astype(np.float32)),
            discounts=self.to_torch((self.gamma ** (last + 1)).astype(np.float32)),
        )

    def _tensors(
        self, kept: dict[str, NDArray[Any]], row: NDArray[np.intp], column: NDArray[np.intp], env: VecNormalize | None
    ) -> dict[str, torch.Tensor]:
        """
        :param kept: observations, by key, ``(buffer_size, n_envs, ...)``
        :param row: ``(b,)``
        :param column: ``(b,)``
        :param env: normalises
        :return: those in these rows and columns, ``(b, ...)``
        """
        observation: Any = self._normalize_obs({key: part[row, column] for key, part in kept.items()}, env)
        return {key: self.to_torch(part) for key, part in observation.items()}
