"""
The two point-mass navigation domains of Recovery RL, and exactly which of their actions are safe.

Brijen Thananjeyan, Ashwin Balakrishna et al., "Recovery RL: Safe reinforcement learning with learned recovery zones",
IEEE Robotics and Automation Letters 6(3), 2021 (arXiv 2010.15920). Dynamics, noise, obstacles, start, goal and horizon
are those that the authors published with the paper. Here reward and goal are judged where a step ends, there where it
began.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.special import ndtr

from persist_sb3.viability import ViabilitySet

Floats = NDArray[np.float64]

#: Rectangles ``(x_low, x_high, y_low, y_high)`` of each map. They do not overlap, so that probabilities add up.
OBSTACLES: dict[int, Floats] = {
    # A corridor, 10 wide, closed 30 behind the start.
    1: np.array([(-100.0, 150.0, 5.0, 10.0), (-100.0, -80.0, -5.0, 5.0), (-100.0, 150.0, -10.0, -5.0)]),
    # A block on the straight way to the goal.
    2: np.array([(-30.0, -20.0, -7.5, 7.5)]),
}
START = np.array([-50.0, 0.0])
GOAL = np.array([0.0, 0.0])
GOAL_RADIUS = 4.0


class NavigationEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """
    A point in the plane that is to reach a goal and touch no obstacle: ``s' = s + a + noise * N(0, I)``.

    - **Actions**: ``Box(-1, 1, (2,))``, the displacement along x and y.
    - **Observation**: ``Box(-300, 300, (2,))``, the position; 100 steps do not lead further.
    - **Reward**: minus the distance to the goal, at most 0; an agent that only adds it up does best to run into the
      nearest wall.
    - **End**: ``terminated`` inside an obstacle, or within 4 of the goal; the registered ids truncate after 100 steps.
    - **Info**: ``internal``, the clearance, ``(1,)``; at a step ``success``, and ``cost``, 1 inside an obstacle.

    The one internal variable, ``clearance``, is the signed distance to the nearest obstacle, negative inside, and no
    greater than ``sight`` in absolute value: how far the agent sees. It must stay at or above 0.

    :param layout: 1, the corridor, or 2, the block
    :param noise: standard deviation of the displacement's noise, along each axis
    :param start_noise: standard deviation of the start, along each axis
    :param sight: greatest clearance that is told apart
    :raises ValueError: if there is no such layout, a standard deviation is negative or ``sight`` is not positive
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    internal_names = ("clearance",)
    internal_entries: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, layout: int = 1, noise: float = 0.05, start_noise: float = 1.0, sight: float = 5.0) -> None:
        if layout not in OBSTACLES:
            raise ValueError(f"layout={layout!r} must be one of {', '.join(map(str, OBSTACLES))}")
        if not (noise >= 0.0 and start_noise >= 0.0):
            raise ValueError(f"noise={noise} and start_noise={start_noise} must not be negative")
        if not sight > 0.0:
            raise ValueError(f"sight={sight} must be positive")
        self.obstacles = OBSTACLES[layout]
        self.noise = noise
        self.start_noise = start_noise
        self.sight = sight
        self.observation_space = spaces.Box(-300.0, 300.0, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.viability = ViabilitySet(["clearance >= 0"], self.internal_names, mu=[sight], low=[-sight], high=[sight])
        self.position = START.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.position = START + self.start_noise * self.np_random.standard_normal(2)
        return self.position.astype(np.float32), {"internal": self._clearance()}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        moved = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        self.position = self.position + moved + self.noise * self.np_random.standard_normal(2)
        distance = float(np.hypot(*(self.position - GOAL)))
        clearance = self._clearance()
        hit = bool(clearance[0] < 0.0)
        success = distance < GOAL_RADIUS and not hit
        info = {"internal": clearance, "cost": float(hit), "success": success}
        return self.position.astype(np.float32), -distance, hit or success, False, info

    def _clearance(self) -> Floats:
        return signed_distance(self.position[None], self.obstacles).clip(-self.sight, self.sight)


def signed_distance(position: Floats, obstacles: Floats) -> Floats:
    """
    :param position: ``(n, 2)``
    :param obstacles: rectangles ``(x_low, x_high, y_low, y_high)``, ``(k, 4)``
    :return: distance to the nearest of them; inside of one, minus the distance to its edge; ``(n,)``
    """
    low, high = obstacles[:, [0, 2]], obstacles[:, [1, 3]]
    beyond = np.maximum(low - position[:, None], position[:, None] - high)
    outside = np.hypot(*np.moveaxis(beyond.clip(min=0.0), 2, 0))
    inside = beyond.max(axis=2).clip(max=0.0)
    distance: Floats = (outside + inside).min(axis=1)
    return distance


def collision_probability(
    position: Floats, action: NDArray[np.floating[Any]], obstacles: Floats, noise: float
) -> Floats:
    """
    How probable it is that an action ends in an obstacle: the noise is Gaussian and the obstacles are rectangles, so
    the closed form is a product of normal distribution functions.

    Without noise this is the whole viability kernel: the point can stand still, so every position outside the obstacles
    is viable, and an action is safe if and only if it ends outside. With noise, an action that ends well outside leaves
    the same choice at the next step, so what it risks is what it risks now.

    :param position: ``(n, 2)``
    :param action: displacements, clipped to ``[-1, 1]``, ``(n, 2)``
    :param obstacles: rectangles that do not overlap, ``(k, 4)``
    :param noise: standard deviation of the displacement's noise, along each axis
    :return: ``(n,)``
    """
    target = (position + np.clip(action, -1.0, 1.0))[:, None]
    low, high = obstacles[:, [0, 2]], obstacles[:, [1, 3]]
    if noise == 0.0:
        hit: Floats = np.logical_and(target > low, target < high).all(axis=2).max(axis=1).astype(np.float64)
        return hit
    within = ndtr((high - target) / noise) - ndtr((low - target) / noise)
    probability: Floats = within.prod(axis=2).sum(axis=1)
    return probability
