"""Registers an environment that refuses every action which it has masked."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

ACTIONS = 16


class OneAllowedEnv(gym.Env[NDArray[np.float32], np.int64]):
    """At each step one action is allowed, drawn anew, and the observation does not say which."""

    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Discrete(ACTIONS)

    def _observe(self) -> NDArray[np.float32]:
        self.allowed = int(self.np_random.integers(ACTIONS))
        return np.zeros(1, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if action != self.allowed:
            raise RuntimeError(f"action {action} is masked, only {self.allowed} is allowed")
        self.time += 1
        return self._observe(), 1.0, False, self.time >= 8, {}

    def action_masks(self) -> NDArray[np.bool_]:
        return np.arange(ACTIONS) == self.allowed


gym.register("OneAllowed-v0", "tests.masked_toy:OneAllowedEnv")
