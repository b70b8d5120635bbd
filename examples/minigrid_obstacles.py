"""
MiniGrid's moving obstacles, with the free tiles ahead as internal variable: 0 after running into a wall or a ball,
which ends the episode, 1 right before one, at most 3. ``pip install minigrid``; then ``python
examples/minigrid_obstacles.py``, or ``python train.py --gym-packages examples.minigrid_obstacles --algo ppo --env
Obstacles-v0 --shield``.
"""

import gymnasium as gym
import minigrid  # noqa: F401 (registers its ids)
import numpy as np
from minigrid.core.constants import OBJECT_TO_IDX

SIGHT = 3
KINDS = [OBJECT_TO_IDX[kind] for kind in ("wall", "ball", "goal")]


class Ahead(gym.ObservationWrapper):
    """
    What is seen, as a vector: for each of the 7 x 7 tiles whether a wall, a ball or the goal is there. The models learn
    from vectors, and codes of kinds, as MiniGrid gives them, are no quantities.

    :param env: a MiniGrid environment
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (7 * 7 * len(KINDS),), np.float32)

    def observation(self, observation):
        return (observation["image"][:, :, :1] == KINDS).astype(np.float32).reshape(-1)

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return observation, {**info, "ahead": self.ahead()}

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        # Running into something is what costs 1; whatever is ahead then was moved there by chance.
        return observation, reward, terminated, truncated, {**info, "ahead": 0 if reward < 0 else self.ahead()}

    def ahead(self) -> int:
        world, tile = self.env.unwrapped, np.array(self.env.unwrapped.agent_pos)
        for free in range(1, SIGHT):
            cell = world.grid.get(*(tile + free * world.dir_vec))
            if cell is not None and cell.type != "goal":
                return free
            if cell is not None:
                break
        return SIGHT


gym.register("Obstacles-v0", lambda **kwargs: Ahead(gym.make("MiniGrid-Dynamic-Obstacles-6x6-v0", **kwargs)))

if __name__ == "__main__":
    import sys

    from persist_sb3.train import train

    train(["--algo", "ppo", "--env", "Obstacles-v0", "--shield", *sys.argv[1:]])
