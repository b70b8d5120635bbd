"""Small environments with an internal variable, of every observation and action space."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-10.0, 10.0, (4,), dtype=np.float32),
    "dict": spaces.Dict({"sight": spaces.Box(-10.0, 10.0, (2, 2), dtype=np.float32), "beat": spaces.Discrete(3)}),
    "tuple": spaces.Tuple((spaces.Box(-10.0, 10.0, (2,), dtype=np.float32), spaces.Discrete(3))),
    "discrete": spaces.Discrete(5),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1.0, 1.0, (2,), dtype=np.float32),
}


class Walker(gym.Env[Any, Any]):
    """
    Two internal variables that wander: ``battery`` falls faster the larger the action, ``heat`` is noise about 0.5. An
    episode ends when the battery is below 0.2, and is truncated after ``horizon`` steps.
    """

    def __init__(self, observation: str = "box", action: str = "discrete", horizon: int = 12) -> None:
        self.observation_space = OBSERVATIONS[observation]
        self.action_space = ACTIONS[action]
        self.horizon = horizon
        self.observation_kind = observation

    def observe(self) -> Any:
        battery, heat = self.x.astype(np.float32)
        if self.observation_kind == "box":
            return np.array([battery, heat, self.time, -battery], dtype=np.float32)
        if self.observation_kind == "dict":
            sight = np.array([[battery, heat], [self.time, -battery]], dtype=np.float32)
            return {"sight": sight, "beat": np.int64(self.time % 3)}
        if self.observation_kind == "tuple":
            return np.array([battery, heat], dtype=np.float32), np.int64(self.time % 3)
        return np.int64(self.time % 5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = np.array([0.8, 0.5]) + self.np_random.uniform(-0.1, 0.1, 2)
        self.time = 0
        return self.observe(), {"internal": self.x.copy(), "battery": float(self.x[0])}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        effort = float(np.abs(action).sum())
        self.x += [-0.03 - 0.02 * effort, self.np_random.normal(0.0, 0.02)]
        info = {"internal": self.x.copy(), "battery": float(self.x[0])}
        return self.observe(), effort, bool(self.x[0] < 0.2), self.time >= self.horizon, info


class Scripted(gym.Env[Any, Any]):
    """
    Returns what it is told to.

    :param rows: one an observation, ``(T + 1, k)``, the first of them at reset
    :param infos: one an observation, merged into ``{"internal": row}``
    """

    def __init__(self, rows: Any, infos: list[dict[str, Any]] | None = None, reward: float = 0.0) -> None:
        self.rows = np.asarray(rows, dtype=np.float32)
        self.infos = infos
        self.reward = reward
        self.observation_space = spaces.Box(-np.inf, np.inf, self.rows.shape[1:], dtype=np.float32)
        self.action_space = spaces.Discrete(2)

    def _info(self) -> dict[str, Any]:
        if self.infos is not None:
            return dict(self.infos[self.time])
        return {"internal": self.rows[self.time].astype(np.float64)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.rows[0].copy(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        last = self.time == len(self.rows) - 1
        return self.rows[self.time].copy(), self.reward, False, last, self._info()


class BatteryEnv(gym.Env[Any, Any]):
    """The environment that the documentation's fragments wrap."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), dtype=np.float32)
    action_space = spaces.Discrete(4)

    def _info(self) -> dict[str, Any]:
        return {"battery": {"charge": 0.9}}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.full(4, 0.5, dtype=np.float32), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.full(4, 0.5, dtype=np.float32), 0.0, False, False, self._info()
