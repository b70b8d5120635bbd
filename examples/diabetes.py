"""
A type-1 diabetes patient of the UVa/Padova simulator (simglucose): keep its glucose in [70, 180] mg/dl with the pump's
basal rate; 3 unannounced snacks a day. ``pip install --no-deps simglucose``; then ``python examples/diabetes.py``.
"""

import sys
import types
from importlib.resources import files

import gymnasium as gym
import numpy as np

# simglucose 0.2 asks gym to register it and pkg_resources for its tables. Both are gone; its patient needs only this.
STAND_INS = {name: types.ModuleType(name) for name in ("gym", "gym.envs", "gym.envs.registration", "pkg_resources")}
STAND_INS["gym.envs.registration"].register = lambda **_: None
STAND_INS["pkg_resources"].resource_filename = lambda package, name: str(files(package) / name)
sys.modules.update(STAND_INS)
from simglucose.patient.t1dpatient import Action, T1DPatient  # noqa: E402

for name in STAND_INS:
    del sys.modules[name]


class Diabetes(gym.Env):
    """One day. Shown: glucose / 100 now, 15 and 30 minutes ago, insulin of 2 hours against basal, the time of day."""

    def __init__(self, patient: str = "adult#001") -> None:
        self.observation_space = gym.spaces.Box(-1.0, 7.0, (5,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)  # 0 to 4 times the patient's own basal rate
        table = T1DPatient.withName(patient)._params
        self.start, self.basal = table.iloc[2:15].to_numpy(dtype=float), table.u2ss * table.BW / 6000
        self.parameters = types.SimpleNamespace(**table.to_dict())  # read a hundred times faster than a row of pandas

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        start = self.start * np.where(np.isin(range(13), (3, 4, 12)), self.np_random.uniform(0.7, 1.1), 1.0)
        self.patient = T1DPatient(self.parameters, init_state=start)
        self.meals = {time: self.np_random.uniform(10, 30) for time in self.np_random.choice(90, 3, replace=False)}
        self.history, self.insulin, self.time = [self.patient.observation.Gsub] * 3, [1.0] * 8, 0
        return self.observe(), {"glucose": self.history[-1]}

    def step(self, action):
        dose = 2.0 * (float(np.clip(action[0], -1.0, 1.0)) + 1.0)
        for carbohydrate in (self.meals.get(self.time, 0.0), *[0.0] * 14):
            self.patient.step(Action(CHO=carbohydrate, insulin=dose * self.basal))
        glucose, self.time = self.patient.observation.Gsub, self.time + 1
        self.history, self.insulin = [*self.history[1:], glucose], [*self.insulin[1:], dose]
        return self.observe(), 1.0 - abs(glucose - 120.0) / 60.0, not 10 < glucose < 600, False, {"glucose": glucose}

    def observe(self):
        values = [*np.divide(self.history, 100.0), np.mean(self.insulin) - 1.0, self.time / 96]
        return np.clip(values, -1.0, 7.0).astype(np.float32)


gym.register("Diabetes-v0", Diabetes, max_episode_steps=96)
if __name__ == "__main__":
    from persist_sb3.train import train

    train(["--algo", "sac", "--env", "Diabetes-v0", "--shield", *sys.argv[1:]])
