"""Action masks of somebody who knows the world: what masking is worth at best."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from persist_sb3.envs.dynamics import ACTIONS
from persist_sb3.envs.oracle.planner import BeamPlanner
from persist_sb3.envs.snapshot import Snapshot, join


class OracleMasks(VecEnvWrapper):
    """
    GridLife with masks that let the actions pass after which the planner finds a way to stay alive
    (:meth:`BeamPlanner.safe_actions`): the ceiling of what a shield that has learned can do for an agent that asks for
    masks, such as MaskablePPO. The planner foresees no slip, so limits are drawn together about the setpoint by
    ``tightness`` for it, which leaves room for one; where no action passes then, those count that pass within the true
    limits, and where none does either, the planner's own. Where every internal variable is at least ``relaxed`` inside
    its limits, nothing is searched, and all pass.

    :param venv: GridLife's environments, with layers around them or not
    :param width: paths that the planner keeps at each step
    :param depth: steps looked ahead
    :param tightness: by which the limits are narrowed, at least 1; 1.4 leaves room for the damage of a hazard
    :param relaxed: scaled margin from which no single action is dangerous
    :raises ValueError: if the width, depth or tightness is below 1
    """

    def __init__(
        self, venv: VecEnv, width: int = 16, depth: int = 12, tightness: float = 1.4, relaxed: float = 0.8
    ) -> None:
        super().__init__(venv)
        if not tightness >= 1.0:
            raise ValueError(f"tightness={tightness} must be at least 1")
        params, self._viability = (venv.get_attr(name, 0)[0] for name in ("params", "viability"))
        self._planner = BeamPlanner(params, width, depth, viability=self._viability)
        self._careful = BeamPlanner(params, width, depth, viability=self._viability.tighten(tightness))
        self._relaxed = relaxed

    def reset(self) -> VecEnvObs:
        observation = self.venv.reset()
        self.reset_infos = self.venv.reset_infos
        return observation

    def step_wait(self) -> VecEnvStepReturn:
        step = self.venv.step_wait()
        self.reset_infos = self.venv.reset_infos
        return step

    def action_masks(self) -> NDArray[np.bool_]:
        """
        :return: which actions pass, ``(n, 5)``
        """
        worlds: Snapshot = join(self.venv.env_method("snapshot"))
        masks = np.ones((self.num_envs, len(ACTIONS)), dtype=bool)
        asked = np.flatnonzero(self._viability.margins(worlds.internal).min(axis=1) < self._relaxed)
        if len(asked):
            masks[asked] = self._careful.safe_actions(worlds[asked])
            lost = np.flatnonzero(~masks.any(axis=1))
            if len(lost):
                masks[lost] = self._planner.safe_actions(worlds[lost])
            lost = np.flatnonzero(~masks.any(axis=1))
            if len(lost):
                masks[lost, self._planner.plan(worlds[lost])] = True
        return masks

    def has_attr(self, attr_name: str) -> bool:
        return attr_name == "action_masks" or super().has_attr(attr_name)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        if method_name == "action_masks":
            masks = self.action_masks()
            return [masks[index] for index in self._get_indices(indices)]
        return super().env_method(method_name, *method_args, indices=indices, **method_kwargs)
