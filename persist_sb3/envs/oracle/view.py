"""All of GridLife's worlds as an observation, and their mean dynamics as a function of it: for planners and shields."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from persist_sb3.envs.interface import limits
from persist_sb3.envs.oracle.model import Foresight
from persist_sb3.envs.oracle.planner import LEAST
from persist_sb3.envs.vector import GridLifeVecEnv


class FullView(VecEnvWrapper):
    """
    GridLife for agents that are told everything. The observation of a world is its number, the agent's tile, and for
    each slot of food and items whether something is there, ``(2 + food + items,)``; with the internal variables that is
    all that a step depends on. :meth:`dynamics` is what
    :class:`~persist_sb3.wrappers.ReachAvoidPlanner` and :class:`~persist_sb3.wrappers.ActionShield` take as known
    dynamics: the mean ones, in which nobody slips and what is taken does not come back.

    :param venv: the worlds, with Discrete actions
    :raises ValueError: if their dynamics drift or they have seasons, which the observation does not tell
    """

    def __init__(self, venv: GridLifeVecEnv) -> None:
        self.worlds = venv
        params = venv.params
        if params.energy_drift:
            raise ValueError(f"energy_drift={params.energy_drift}: FullView does not show how far that has gone")
        if params.climate:
            raise ValueError(f"climate={params.climate}: FullView does not show the season")
        high = np.array([venv.num_envs - 1, params.size**2 - 1, *[1] * params.slots], dtype=np.float32)
        super().__init__(venv, spaces.Box(np.zeros_like(high), np.maximum(high, 1.0), dtype=np.float32))
        self._bits = np.arange(params.slots)
        self._foresight: tuple[bytes, Foresight] | None = None

    @property
    def internal_entries(self) -> dict[str, str]:
        """The observation shows no internal variable."""
        return {}

    def reset(self) -> VecEnvObs:
        self.venv.reset()
        self.reset_infos = self.venv.reset_infos
        return self._observe()

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        internal = self.worlds.get_internal()
        _, rewards, dones, infos = self.venv.step_wait()
        self.reset_infos = self.venv.reset_infos
        if dones.any():
            # The worlds have begun anew: their last view is what was foreseen of it.
            last, _ = self.dynamics(self._seen, internal, self._actions)
            for slot in np.flatnonzero(dones):
                infos[slot]["terminal_observation"] = last[slot]
        return self._observe(), rewards, dones, infos

    def _observe(self) -> NDArray[np.float32]:
        self._now, self._foresight = now, _ = self.worlds.snapshot(), None
        self._seen = np.column_stack([np.arange(self.num_envs), now.cell, now.due == 0]).astype(np.float32)
        return self._seen.copy()

    def dynamics(
        self, observation: NDArray[Any], internal: NDArray[Any], action: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """
        :param observation: as the worlds are now, or as they would be later, ``(r, 2 + food + items)``
        :param internal: internal variables, ``(r, 3)``
        :param action: ``(r,)``
        :return: what is observed next, and the internal variables next
        """
        world, cell = observation[:, 0].astype(np.int64), observation[:, 1].astype(np.int64)
        gone = ((observation[:, 2:] < 0.5).astype(np.int64) << self._bits).sum(axis=1)
        future = self._of(world).step(cell[:, None], internal.T[:, :, None].astype(np.float64), gone[:, None])
        rows = np.arange(len(world))
        there = (future.gone[rows, action][:, None] >> self._bits & 1) == 0
        following = np.column_stack([world, future.cell[rows, action], there]).astype(np.float32)
        return following, future.internal[:, rows, action].T

    def progress(self, observation: NDArray[Any], internal: NDArray[Any]) -> NDArray[np.float64]:
        """
        Food pulls from further away than a plan reaches, as it does in :class:`BeamPlanner`.

        :param observation: ``(r, 2 + food + items)``
        :param internal: internal variables, ``(r, 3)``
        :return: logarithm of the energy that is left above its limit when the nearest food that is there is reached,
            ``(r,)``
        """
        params = self.worlds.params
        world, cell = observation[:, 0].astype(np.int64), observation[:, 1].astype(np.int64)
        places = self._now.places[world, : params.food]
        ways = np.abs(np.stack(np.divmod(places, params.size)) - np.stack(np.divmod(cell, params.size))[:, :, None])
        steps = np.where(observation[:, 2 : 2 + params.food] > 0.5, ways.sum(axis=0), 2 * params.size).min(axis=1)
        low, _, _, _ = limits(self.worlds.viability, params)
        left = internal[:, 0] - low[0] - steps * (params.energy_decay + params.move_cost)
        return np.log(np.maximum(left, LEAST))

    def _of(self, world: NDArray[np.int64]) -> Foresight:
        """
        :param world: number of the world of each row, ``(r,)``
        :return: foresight for these rows
        """
        key = world.tobytes()
        if self._foresight is None or self._foresight[0] != key:
            now = self._now
            self._foresight = (
                key,
                Foresight(self.worlds.params, now.heat[world], now.hazard[world], now.places[world]),
            )
        return self._foresight[1]
