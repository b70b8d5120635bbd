"""What the doctor finds in environments that were made ill on purpose, and in healthy ones."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from persist_sb3.config import PersistConfig
from persist_sb3.diagnosis.finding import Finding
from persist_sb3.diagnosis.numbers import numbers_of
from persist_sb3.doctor import Diagnosis, examine

BATTERY: dict[str, Any] = {
    "internal_state": {
        "dims": ["battery"],
        "mu": [0.8],
        "low": [0.0],
        "high": [1.0],
        "source": {"battery": "info.battery"},
    },
    "viability": {"constraints": ["battery >= 0.2"]},
}


class Robot(gym.Env[Any, Any]):
    """
    A battery that action 1 charges and action 0 drains, in ``info["battery"]`` and in the observation. Its illnesses
    are named by the keyword arguments.
    """

    def __init__(
        self,
        start: float = 0.6,
        limit: int | None = 40,
        dies: bool = True,
        limit_is_death: bool = False,
        deaf: bool = False,
        nan_at: int = -1,
        at_reset: bool = True,
        wrong_shape: bool = False,
        dies_by_chance: bool = False,
    ) -> None:
        self.observation_space = spaces.Box(-10.0, 10.0, (2,), dtype=np.float32)
        self.action_space = spaces.Discrete(2)
        self.start, self.limit, self.dies, self.limit_is_death = start, limit, dies, limit_is_death
        self.deaf, self.nan_at, self.at_reset, self.wrong_shape = deaf, nan_at, at_reset, wrong_shape
        self.dies_by_chance = dies_by_chance

    def _seen(self) -> Any:
        return np.zeros(3 if self.wrong_shape else 2, dtype=np.float32) + np.float32(self.battery)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.battery = self.start + float(self.np_random.uniform(-0.05, 0.05))
        return self._seen(), {"battery": self.battery} if self.at_reset else {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        change = 0.05 if action == 1 and not self.deaf else -0.05
        self.battery = float(np.clip(self.battery + change, 0.0, 1.0))
        over = self.limit is not None and self.time >= self.limit
        dead = (self.dies and self.battery < 0.2) or (self.dies_by_chance and self.np_random.random() < 0.1)
        observation = self._seen()
        if self.time == self.nan_at:
            observation[0] = np.nan
        info = {"battery": self.battery}
        return observation, 1.0, bool(dead or (over and self.limit_is_death)), over and not self.limit_is_death, info


gym.register("Robot-v0", entry_point="tests.test_diagnosis:Robot")


def examined(persist: dict[str, Any] | None = None, **kwargs: Any) -> Diagnosis:
    data = {**BATTERY, **(persist or {}), "env": {"name": "Robot-v0", "kwargs": kwargs}}
    return examine("Robot-v0", PersistConfig.model_validate(data), episodes=12, most=200)


def found(diagnosis: Diagnosis, check: str) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.check == check]


def test_a_healthy_environment_has_no_problems() -> None:
    diagnosis = examined()
    assert diagnosis.problems == []
    assert {finding.check for finding in diagnosis.findings} >= {"beginning", "constraints", "layers", "reward", "ends"}


@pytest.mark.parametrize(
    ("kwargs", "check", "text"),
    [
        ({"start": 0.1}, "beginning", "begin in violation of battery >= 0.2"),
        ({"limit": None, "dies": False}, "horizon", "had no end within 200 steps"),
        ({"dies": False, "limit_is_death": True, "limit": 8}, "time limit", "at step 8 as terminated"),
        ({"deaf": True}, "influence of actions", "no action changes battery"),
        ({"nan_at": 3}, "finite numbers", "NaN or infinity in obs[0]"),
        ({"at_reset": False}, "sources", "battery"),
        ({"wrong_shape": True}, "gymnasium's checker", "AssertionError"),
        ({"start": 0.27, "deaf": True}, "difficulty", "random actions live for"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_illness_is_a_problem_with_a_remedy(kwargs: dict[str, Any], check: str, text: str) -> None:
    problems = examined(**kwargs).problems
    (problem,) = [problem for problem in problems if problem.check == check][:1]
    assert text in problem.text
    assert problem.remedy


def test_a_deaf_environment_whose_death_is_fixed_cannot_be_survived() -> None:
    (problem,) = found(examined(deaf=True), "avoidability")
    assert "whatever is done" in problem.text


@pytest.mark.parametrize(
    ("persist", "kwargs", "check", "text"),
    [
        ({}, {"dies": False, "start": 0.35}, "ends", "went on after a violation"),
        ({}, {"dies_by_chance": True, "start": 0.8}, "ends", "terminated without a violation"),
        ({"viability": {"constraints": ["battery >= 0.001"]}}, {"limit": 8, "start": 0.7}, "constraints", "never near"),
        ({"viability": {"constraints": ["battery >= 0.001"]}}, {"limit": 8}, "difficulty", "survive in 100%"),
        ({"internal_state": {**BATTERY["internal_state"], "mu": [0.99]}}, {"limit": 5}, "setpoint", "never reached"),
        ({}, {"start": 0.26, "limit": 20}, "beginning", "begin near the boundary"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_may_be_meant_is_a_note(persist: dict[str, Any], kwargs: dict[str, Any], check: str, text: str) -> None:
    notes = [finding for finding in found(examined(persist, **kwargs), check) if finding.level == "note"]
    assert any(text in note.text for note in notes)


@pytest.mark.parametrize(
    ("persist", "check", "text"),
    [
        (
            {"rewards": {"lambda_homeo": 1.0, "alive_bonus": 0.0, "death_penalty": 0.0}},
            "reward",
            "pay the agent to die",
        ),
        ({"train": {"algo": "SAC"}}, "spaces", "sac needs Box actions"),
        (
            {
                "internal_state": {"dims": ["battery"], "mu": [0.8], "source": {"battery": "obs[7]"}},
            },
            "sources",
            "obs[7]",
        ),
    ],
    ids=["reward", "algorithm", "source"],
)
def test_a_configuration_that_does_not_suit(persist: dict[str, Any], check: str, text: str) -> None:
    (problem,) = [problem for problem in examined(persist).problems if problem.check == check]
    assert text in problem.text
    assert problem.remedy


def test_the_survival_of_random_actions_is_that_of_the_walk() -> None:
    """From below 0.25 half of all die at once, from there to 0.3 a quarter in two steps, and nobody from above."""
    data = {**BATTERY, "env": {"name": "Robot-v0", "kwargs": {"start": 0.27}}}
    diagnosis = examine("Robot-v0", PersistConfig.model_validate(data), episodes=400, most=2)
    durations = np.array([one.record(diagnosis.viability).duration for one in diagnosis.plays])
    dead = np.array([not one.record(diagnosis.viability).survived for one in diagnosis.plays])
    starts = np.array([one.numbers[0]["info.battery"] for one in diagnosis.plays])
    assert not dead[(starts > 0.301)].any()
    at_once = dead & (durations == 1)
    assert at_once[starts >= 0.2501].sum() == 0
    assert at_once[starts < 0.2499].mean() == pytest.approx(0.5, abs=0.12)
    assert (dead & (durations == 2))[(starts > 0.2501) & (starts < 0.2999)].mean() == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "GridLife-v0"])
def test_environments_without_a_configuration(env_id: str) -> None:
    diagnosis = examine(env_id, episodes=5)
    assert diagnosis.problems == []
    assert (diagnosis.viability is None) == (env_id != "GridLife-v0")


def test_every_number_is_found_under_the_path_that_reads_it() -> None:
    observation = {"battery": np.array([0.5]), "map": np.zeros((20, 20)), "xy": np.arange(2.0), "gear": np.int64(3)}
    info = {"heat": 1.5, "odd key": [1, 2], "deep": {"er": np.float32(4)}, "name": "x", "TimeLimit.truncated": False}
    assert numbers_of(observation, info) == {
        "obs.battery": 0.5,
        "obs.xy[0]": 0.0,
        "obs.xy[1]": 1.0,
        "obs.gear": 3.0,
        "info.heat": 1.5,
        "info['odd key'][0]": 1.0,
        "info['odd key'][1]": 2.0,
        "info.deep.er": 4.0,
    }
