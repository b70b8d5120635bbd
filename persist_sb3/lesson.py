"""What a policy is shown, in batches."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecNormalize

from persist_sb3.batch import Batch, take, tree_map
from persist_sb3.pupils import Pupil


class Lesson:
    """
    Batches of what a policy is shown.

    :param pupil: the policy
    :param observation: as the environment has them, ``(m, ...)``
    :param action: what was done there, ``(m, ...)``
    :param normalizer: makes of observations what the policy sees; None if it sees them as they are
    :param batch_size: rows of a batch
    :param generator: draws them
    """

    def __init__(
        self,
        pupil: Pupil,
        observation: Batch,
        action: NDArray[Any],
        normalizer: VecNormalize | None,
        batch_size: int,
        generator: np.random.Generator,
    ) -> None:
        self._pupil = pupil
        self._observation = observation
        self._device = pupil.choosing[0].device
        self._action = torch.as_tensor(pupil.encode(action), device=self._device)
        self._normalizer = normalizer
        self._batch_size = batch_size
        self._generator = generator

    def measure(self) -> None:
        """Let ``VecNormalize`` begin with the moments of these observations."""
        if self._normalizer is None:
            return
        moments: Any = self._normalizer.obs_rms
        if isinstance(moments, dict):
            for key, each in moments.items():
                each.update(self._observation[key])
        else:
            moments.update(self._observation)

    def loss(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        :return: of one batch, see :meth:`~persist_sb3.pupils.Pupil.loss`
        """
        rows = self._generator.integers(len(self._action), size=self._batch_size)
        observation: Any = take(self._observation, rows)
        if self._normalizer is not None:
            observation = self._normalizer.normalize_obs(observation)
        seen = tree_map(lambda leaf: torch.as_tensor(leaf, device=self._device), observation)
        return self._pupil.loss(seen, self._action[rows])
