"""Several lives in a row as one episode of the learner, so that a memory can carry over what the last ones taught."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, is_vecenv_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from persist_sb3.batch import Batch, add_batch_axis, first_row, flatten
from persist_sb3.infos import LIFE_OVER, ListInfos
from persist_sb3.wrappers.extended import ExtendedObservation

KEY = "trial"


class VecTrials(VecEnvWrapper):
    """
    Joins ``lives`` episodes of an environment to a trial, as RL^2 does (Duan et al., "RL^2: Fast reinforcement learning
    via slow reinforcement learning", 2016, arXiv:1611.02779; Wang et al., "Learning to reinforcement learn", 2016,
    arXiv:1611.05763). When a life ends the next begins, and ``done`` is reported at the end of the last one only. So a
    recurrent policy keeps its memory from life to life, and a value function counts the rewards of the lives to come.

    What the agent sees grows by what it needs to learn from that: its last action (one-hot where it is discrete), the
    last reward, as the layers below gave it, and a flag that is 1 at the first observation of a life. The first two are
    0 when a trial begins, and are kept when a life does. A Dict observation gets the key ``trial``, a Box grows.

    To this package a life is an episode as before, above and below: ``info["life_over"]`` tells where one ends, and
    ``info["terminal_observation"]`` and ``info["TimeLimit.truncated"]`` how. What SB3 itself counts by ``done`` are
    trials; a ``Monitor`` below sees lives, and ``EvalCallback`` then scores the last life of each trial.

    It exists for SB3's ``VecEnv`` alone, which recurrent policies are trained in.

    :param venv: environments, in each of which the lives of a trial have in common what is to be found out
    :param lives: in a trial, at least 2
    :raises ValueError: if it is out of its range
    :raises RuntimeError: if trials are formed below already, or a Dict observation has the key ``trial``
    :raises TypeError: if observations or actions have no fixed size
    """

    def __init__(self, venv: VecEnv, lives: int) -> None:
        if lives < 2:
            raise ValueError(f"lives={lives} must be at least 2: with one life in a trial nothing is carried over")
        if is_vecenv_wrapped(venv, VecTrials):
            raise RuntimeError("these environments form trials already: use one VecTrials only")
        actions = spaces.flatten_space(venv.action_space)
        if not isinstance(actions, spaces.Box):
            raise TypeError(
                f"VecTrials cannot show actions of {venv.action_space}: wrap it so that it has a fixed size"
            )
        low, high = (
            np.append(bound, ends) for bound, ends in ((actions.low, (-np.inf, 0)), (actions.high, (np.inf, 1)))
        )
        self._extended = ExtendedObservation("VecTrials", venv.observation_space, KEY, low, high)
        super().__init__(venv, observation_space=self._extended.space)
        self.lives = lives
        #: The wrapper's parameters.
        self.kwargs = {"lives": lives}
        # Lives that each trial has seen the end of, (n,).
        self._count = np.zeros(self.num_envs, dtype=np.intp)
        # Last action and reward, and whether a life begins, (n, k).
        self._past = np.zeros((self.num_envs, len(low)), dtype=np.float32)

    def reset(self) -> VecEnvObs:
        self._count[:] = 0
        self._past[:] = 0.0
        self._past[:, -1] = 1.0
        return self._show(self.venv.reset())

    def step_async(self, actions: NDArray[Any]) -> None:
        self._past[:, :-2] = flatten(self.action_space, actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, life_over, infos = self.venv.step_wait()
        told = infos if type(infos) is ListInfos else ListInfos(infos)
        told.publish(LIFE_OVER, np.arange(self.num_envs), life_over)
        self._past[:, -2], self._past[:, -1] = rewards, 0.0
        if not life_over.any():
            return self._show(observation), rewards, life_over, told
        ended = np.flatnonzero(life_over)
        for slot in ended:
            last = add_batch_axis(told[slot]["terminal_observation"])
            told[slot]["terminal_observation"] = first_row(self._extended.show(last, self._past[[slot]]))
        self._count[ended] += 1
        over = self._count == self.lives
        self._count[over] = 0
        self._past[over] = 0.0
        self._past[ended, -1] = 1.0
        return self._show(observation), rewards, over, told

    def _show(self, observation: Batch) -> Batch:
        return self._extended.show(observation, self._past.copy())
