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


class Wall(gym.Env[Any, Any]):
    """
    A double integrator before a wall: a unit mass is pushed with a force of at most 1 and must stay at a position of at
    most 1. It can brake within ``v ** 2 / 2``, so ``p + max(v, 0) ** 2 / 2 <= 1`` is the largest set in which it can be
    kept. Between two steps the force is constant, and the motion exact. The reward is the velocity: it pays to go fast
    at the wall.

    :param dt: time between two steps
    :param horizon: steps after which an episode is cut off
    :param anywhere: whether episodes begin where the wall can no longer be avoided, too
    """

    LOW, HIGH = np.array([-1.5, -1.5]), np.array([1.0, 1.5])

    def __init__(self, dt: float = 0.1, horizon: int = 60, anywhere: bool = False) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
        self.dt = dt
        self.horizon = horizon
        self.anywhere = anywhere

    @staticmethod
    def reach(x: Any) -> Any:
        """How far a mass at ``x = (position, velocity)``, ``(..., 2)``, still goes if it brakes as hard as it can."""
        return x[..., 0] + np.maximum(x[..., 1], 0.0) ** 2 / 2.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.x = self.np_random.uniform(self.LOW, self.HIGH)
        while not self.anywhere and self.reach(self.x) > 0.8:
            self.x = self.np_random.uniform(self.LOW, self.HIGH)
        return self.x.astype(np.float32), {"internal": self.x.copy()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        force = float(np.clip(action[0], -1.0, 1.0))
        position, velocity = self.x
        self.x = np.array([position + velocity * self.dt + force * self.dt**2 / 2.0, velocity + force * self.dt])
        reward = float(self.x[1])
        return (
            self.x.astype(np.float32),
            reward,
            bool(self.x[0] > 1.0),
            self.time >= self.horizon,
            {"internal": self.x.copy()},
        )
