"""
Real problems: what the layers and the shield do on environments that other people's work is about. Three agents each:
bare SB3, with the homeostatic reward, and with the shield on top, all trained by ``train.py`` from the hyperparameters
in ``persist_sb3/hyperparams``. Environments whose package is not installed are left out, and named.

Agents that are there already are not trained again, so the benchmark can be interrupted. ``--only`` and
``--conditions`` leave the other results as they are::

    python -m benchmarks.problems --seeds 2                            # about 40 minutes of CPU
    python -m benchmarks.problems --seeds 2 --only Navigation1-v0      # one problem
    python -m benchmarks.problems --seeds 3 --first-seed 2             # one more agent than there are results of
"""

import importlib
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from benchmarks.continuous import TASKS as CLASSIC
from benchmarks.continuous import Figures, Task, compare
from persist_sb3 import hyperparams
from persist_sb3.envs.navigation import collision_probability
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import EpisodeRecord
from persist_sb3.runs import Run
from persist_sb3.wrappers import InternalState

#: An action is safe if it ends in an obstacle with at most this probability.
RISK = 0.01


class Audit(VecEnvWrapper):
    """
    Holds what a shield decides about proposed actions against the exact kernel of the navigation domains.

    :param venv: the environments, shield included
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.refused: list[NDArray[np.bool_]] = []
        self.safe: list[NDArray[np.bool_]] = []

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_async(self, actions: NDArray[np.float32]) -> None:
        env = self.get_attr("unwrapped", indices=0)[0]
        position = np.stack(self.get_attr("position"))
        self.safe.append(collision_probability(position, actions, env.obstacles, env.noise) <= RISK)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        result = self.venv.step_wait()
        self.refused.append(np.array([bool(info.get("intervened", False)) for info in result[3]]))
        return result

    @property
    def false_positives(self) -> float:
        """Of the safe actions, the share that is refused."""
        safe, refused = np.concatenate(self.safe), np.concatenate(self.refused)
        return float(refused[safe].mean())

    @property
    def passed_unsafe(self) -> float:
        """Unsafe actions that are let pass, of 1000 proposed ones."""
        safe, refused = np.concatenate(self.safe), np.concatenate(self.refused)
        return float(1000.0 * (~refused & ~safe).mean())


class Uniform:
    """
    Proposes actions that know nothing, so that what is survived is the shield's doing.

    :param venv: whose actions to draw
    """

    def __init__(self, venv: VecEnv) -> None:
        self._venv = venv
        self._venv.action_space.seed(0)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], None]:
        """
        :param observation: how many there are is all that matters
        :param state: of no use
        :param episode_start: of no use
        :param deterministic: of no use
        :return: random actions
        """
        return np.stack([self._venv.action_space.sample() for _ in range(self._venv.num_envs)]), None


def navigation(run: Run, trained: list[EpisodeRecord], tests: list[EpisodeRecord]) -> Figures:
    """
    :param run: on a navigation domain
    :param trained: its training episodes
    :param tests: its test episodes
    :return: Recovery RL's ratio of successes to violations, and what the shield is worth by itself
    """
    figures = {
        f"(successes + 1) / (violations + 1), {when}": (sum(e.survived and e.terminated for e in records) + 1)
        / (sum(not e.survived for e in records) + 1)
        for when, records in (("in training", trained), ("after", tests))
    }
    figures["successes after"] = float(np.mean([e.survived and e.terminated for e in tests]))
    for who in ("own", "random"):
        venv = Audit(run.make_env(10))
        model = run.load_model(venv, seed=0)
        ended = evaluate(model if who == "own" else Uniform(venv), venv, 30, seed=2_000_000)
        venv.close()
        if tests[0].interventions is not None:
            figures[f"safe actions refused, {who}"] = venv.false_positives
            figures[f"unsafe actions passed per 1000, {who}"] = venv.passed_unsafe
        if who == "random":
            figures["random actions: episodes without a violation"] = float(np.mean([e.record.survived for e in ended]))
    return figures


@cache
def grower(episodes: int = 50) -> Figures:
    """
    :param episodes: how many
    :return: what the greenhouse's published rule does: a grower's climate computer, whose setpoints are those that the
        model's validation crops were grown under
    """
    from lettuce_greenhouse_gym.baselines import GrowerHeuristic, run_episode

    entry = hyperparams.load("sac")["Greenhouse-v0"]
    parameters = entry["vec_env_wrapper"][0]["persist_sb3.wrappers.VecInternalState"]
    env = InternalState(gym.make("Greenhouse-v0"), **parameters)
    logs = [run_episode(env, GrowerHeuristic(), seed=1_000_000 + number) for number in range(episodes)]
    costs = [sum(info["cost"] for info in log.info) for log in logs]
    return {
        "a grower's rule: violating steps, per 1000": 1000.0 * sum(costs) / sum(len(log.info) for log in logs),
        "a grower's rule: episodes without a violation": float(np.mean([cost == 0.0 for cost in costs])),
        "a grower's rule: task return": float(np.mean([log.total_return for log in logs])),
    }


def greenhouse(run: Run, trained: list[EpisodeRecord], tests: list[EpisodeRecord]) -> Figures:
    """
    :param run: on the greenhouse
    :param trained: its training episodes
    :param tests: its test episodes
    :return: what to compare it with
    """
    return grower()


TASKS = {
    **{env_id: CLASSIC[env_id] for env_id in ("CartPole-v1", "Pendulum-v1")},
    "Navigation1-v0": Task("sac", 10_000, further=navigation),
    "Navigation2-v0": Task("sac", 10_000, further=navigation),
    "LunarLanderFuel-v0": Task("ppo", 40_000, "examples.lunarlander"),
    "Diabetes-v0": Task("sac", 4_000, "examples.diabetes"),
    "Obstacles-v0": Task("ppo", 30_000, "examples.minigrid_obstacles"),
    "Greenhouse-v0": Task("sac", 8_000, "examples.greenhouse", further=greenhouse),
}


def available(env_id: str, task: Task) -> bool:
    """
    :param env_id: of a problem
    :param task: what it is
    :return: whether the package that its module needs is installed; it says so where it is not
    """
    try:
        if task.package is not None:
            importlib.import_module(task.package)
    except ModuleNotFoundError as error:
        print(f"{env_id} is left out: {error}")
        return False
    return True


if __name__ == "__main__":
    compare({env_id: task for env_id, task in TASKS.items() if available(env_id, task)}, __doc__, "problems")
