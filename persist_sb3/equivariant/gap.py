"""Critics that tell apart what is nearly the same."""

from typing import Any

import torch


class Gap:
    """
    What critics are to think an action worth less than it is, because the actor knows a better one: advantage learning
    (Baird, "Reinforcement learning through gradient descent", 1999; Bellemare et al., "Increasing the action gap: new
    operators for reinforcement learning", AAAI 2016), with the actor's action in the place of the greedy one. With
    ``alpha = 1 - 1 / factor``, ``Q(s, a) = T Q(s, a) - alpha (V(s) - Q(s, a))`` leaves ``V`` as it is, and ``V - Q`` is
    ``factor`` times what it was.

    :param factor: how many times as large differences are to be, at least 1
    :param limit: greatest ``V - Q`` that counts, in units of the return, positive: what is worse is widened by
        ``alpha`` times this and no more
    :raises ValueError: if they are out of their range
    """

    def __init__(self, factor: float, limit: float) -> None:
        if not 1.0 <= factor < torch.inf:
            raise ValueError(f"action_gap={factor} must be at least 1, and finite")
        if not limit > 0.0:
            raise ValueError(f"gap_limit={limit} must be positive")
        self.factor = factor
        self.limit = limit
        #: The slowly following critics, and who knows better.
        self.target: Any = None
        self.actor: Any = None

    @torch.no_grad()
    def shortfall(self, obs: Any, actions: torch.Tensor) -> torch.Tensor:
        """
        :param obs: a batch of observations, ``(n, ...)``
        :param actions: what was done, in ``[-1, 1]``, ``(n, A)``
        :return: what they are to be thought worth less, ``(n, 1)``
        """
        better = self.actor(obs, deterministic=True)
        done, best = self.target.least(obs, torch.stack([actions, better], dim=1)).T
        return (1.0 - 1.0 / self.factor) * (best - done).clamp(0.0, self.limit)[:, None]
