"""The surprise of an episode: how unlike its past an observation is."""

import math

import numpy as np
from numpy.typing import NDArray

#: Age of an episode at which what is shown of it is one half.
HALF_AGE = 100.0


class EpisodeDensity:
    """
    A diagonal Gaussian fitted to all observations of the running episode, of ``n`` environments, as SMiRL has it
    (Berseth et al., "SMiRL: surprise minimizing reinforcement learning in unstable environments", ICLR 2021,
    arXiv:1912.05510). Its variance is that of the episode together with ``prior_count`` observations of standard
    deviation ``prior_std``, so it is never 0 and the density is bounded.

    :param num_envs: number of environments, ``n``
    :param size: length of an observation, ``D``
    :param prior_std: in units of the observation
    :param prior_count: how many observations the prior is worth
    :raises ValueError: if the prior is not positive
    """

    def __init__(self, num_envs: int, size: int, prior_std: float = 1.0, prior_count: float = 1.0) -> None:
        for name, value in (("prior_std", prior_std), ("prior_count", prior_count)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name}={value} must be positive and finite")
        self._prior_count = prior_count
        self._prior = prior_count * prior_std**2
        self._count = np.zeros(num_envs)
        self._mean = np.zeros((num_envs, size))
        self._spread = np.zeros((num_envs, size))

    def begin(self, slots: NDArray[np.intp], observation: NDArray[np.float64]) -> None:
        """
        :param slots: where new episodes begin, ``(k,)``
        :param observation: their first observations, ``(k, D)``
        """
        self._count[slots] = 1.0
        self._mean[slots] = observation
        self._spread[slots] = 0.0

    def update(self, observation: NDArray[np.float64]) -> None:
        """
        Take one more observation of each episode into account (Welford, 1962).

        :param observation: ``(n, D)``
        """
        self._count += 1.0
        before = observation - self._mean
        self._mean += before / self._count[:, None]
        self._spread += before * (observation - self._mean)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Of each entry of the observation, ``(n, D)``."""
        return (self._spread + self._prior) / (self._count + self._prior_count)[:, None]

    def log_density(self, observation: NDArray[np.float64]) -> NDArray[np.float64]:
        """
        :param observation: ``(n, D)``
        :return: logarithm of its density, in nats, mean over the entries, so that the length of an observation does
            not set the size of the reward, ``(n,)``
        """
        variance = self.variance
        squares = (observation - self._mean) ** 2 / variance
        return -0.5 * (squares + np.log(2.0 * np.pi * variance)).mean(axis=1)

    def statistics(self, slots: NDArray[np.intp]) -> NDArray[np.float32]:
        """
        :param slots: which environments, ``(k,)``
        :return: what the density, and so the reward, depends on: mean, standard deviation, and the episode's age ``t``
            as ``t / (t + 100)``, ``(k, 2 D + 1)``
        """
        age = self._count[slots] / (self._count[slots] + HALF_AGE)
        parts = [self._mean[slots], np.sqrt(self.variance[slots]), age[:, None]]
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")
