"""Counts, in a replay that knows only rewards, who stays alive."""

from collections import Counter

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from persist_sb3.evaluation import declared_viability
from persist_sb3.viability import ViabilitySet


class Witness(VecEnvWrapper):
    """
    Changes nothing, and keeps count of episodes, violations and interventions.

    :param venv: the environments, with their layers
    :param viability: their constraints
    """

    def __init__(self, venv: VecEnv, viability: ViabilitySet) -> None:
        super().__init__(venv)
        self._viability = viability
        self._first: list[str | None] = [None] * venv.num_envs
        self._task = np.zeros(venv.num_envs)
        self.steps = self.interventions = 0
        #: Of each whole episode, the constraint that it violated first, or None.
        self.violated: list[str | None] = []
        #: And its task return.
        self.returns: list[float] = []

    @classmethod
    def around(cls, venv: VecEnv) -> VecEnv:
        """
        :param venv: environments
        :return: the same, watched if they say what their internal variables are
        """
        try:
            return cls(venv, declared_viability(venv))
        except RuntimeError:
            return venv

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observation, reward, done, infos = self.venv.step_wait()
        self.steps += self.num_envs
        internal = np.array([np.asarray(info["internal"], dtype=np.float64) for info in infos])
        broken = np.logical_not(self._viability.contains(internal))
        worst = self._viability.violated(internal)
        for slot, info in enumerate(infos):
            self.interventions += bool(info.get("intervened", False))
            self._task[slot] += info.get("reward_terms", {}).get("task", reward[slot])
            if broken[slot] and self._first[slot] is None:
                self._first[slot] = self._viability.names[int(worst[slot])]
            if done[slot]:
                self.violated.append(self._first[slot])
                self.returns.append(float(self._task[slot]))
                self._first[slot], self._task[slot] = None, 0.0
        return observation, reward, done, infos

    def summary(self) -> str:
        """
        :return: what was counted, in a few lines
        """
        if not self.violated:
            return f"persist-sb3: no episode ended within {self.steps} steps"
        alive = self.violated.count(None)
        lines = [
            f"persist-sb3: {alive} of {len(self.violated)} episodes stayed inside their limits; "
            f"task return {np.mean(self.returns):.2f} +/- {np.std(self.returns):.2f}"
        ]
        deaths = Counter(name for name in self.violated if name is not None)
        if deaths:
            lines.append("violated first: " + ", ".join(f"{name} ({count})" for name, count in deaths.most_common()))
        if self.interventions:
            lines.append(f"the shield changed {self.interventions} of {self.steps} actions")
        return "\n".join(lines)
