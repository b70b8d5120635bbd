"""The examples of real problems: what their variables mean, and that they train, shielded and not."""

import importlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from persist_sb3 import hyperparams
from persist_sb3.envs import NAVIGATION_IDS
from persist_sb3.runs import Run
from persist_sb3.train import train
from persist_sb3.wrappers import VecActionShield
from tests.learners import set_up

#: By environment: algorithm, module of examples/, and the package that this needs.
PROBLEMS = {
    "LunarLanderFuel-v0": ("ppo", "lunarlander", "Box2D"),
    "Obstacles-v0": ("ppo", "minigrid_obstacles", "minigrid"),
    "Diabetes-v0": ("sac", "diabetes", "simglucose"),
    "Greenhouse-v0": ("sac", "greenhouse", "lettuce_greenhouse_gym"),
}


def make(env_id: str) -> gym.Env[Any, Any]:
    _, example, package = PROBLEMS[env_id]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"examples/{example}.py needs the package {package}, which is not installed")
    importlib.import_module(f"examples.{example}")
    return gym.make(env_id)


@pytest.mark.parametrize("shield", ["", hyperparams.SHIELDED], ids=["unshielded", "shielded"])
@pytest.mark.parametrize("env_id", [*PROBLEMS, *NAVIGATION_IDS, "CartPole-v1", "Pendulum-v1"])
def test_it_trains(env_id: str, shield: str, tmp_path: Path) -> None:
    algo = PROBLEMS[env_id][0] if env_id in PROBLEMS else "ppo" if env_id == "CartPole-v1" else "sac"
    if env_id in PROBLEMS:
        make(env_id).close()
    entry = hyperparams.load(algo)[env_id + shield]
    small = {"n_envs": 2, "n_steps": 16, "batch_size": 16, "n_epochs": 1, "learning_starts": 16, "gradient_steps": 1}
    entry |= {k: v for k, v in small.items() if k in entry}
    manager, model = set_up(algo, env_id, entry, tmp_path)
    manager.learn(model)
    assert model.num_timesteps >= 64


def test_the_lander_burns_its_fuel_and_ends_at_the_reserve() -> None:
    env = make("LunarLanderFuel-v0")
    env.reset(seed=0)
    for action in (0, 2, 1, 3, 2):
        _, _, _, _, info = env.step(action)
    assert info["internal"][0] == pytest.approx(1.0 - 2 * 0.006 - 2 * 0.001)
    # Straight up is where it stays upright; the 151st firing breaks into the reserve, unless it tilted before.
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        fired, terminated = 0, False
        while not terminated:
            # The side engines hold it upright; the tilt and how fast it changes are in the observation.
            lean = observation[4] + observation[5]
            action = 1 if lean < -0.1 and fired % 2 else 3 if lean > 0.1 and fired % 2 else 2
            fired += 1
            observation, _, terminated, _, info = env.step(action)
        fuel, tilt = info["internal"]
        assert (info["cost"] == 1.0) == (fuel < 0.1 or abs(tilt) > 0.8)
        if fuel < 0.1:
            return
    pytest.fail("no episode ran dry")


def test_the_tiles_ahead_are_those_of_the_grid() -> None:
    env = make("Obstacles-v0")
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    ends = 0
    for _ in range(400):
        world: Any = env.unwrapped
        view = world.gen_obs()["image"][3, ::-1, 0]  # The column in front of the agent, from itself on.
        wall, ball = 2, 6
        blocked = np.flatnonzero(np.isin(view[1:], (wall, ball)))
        goal = np.flatnonzero(view[1:] == 8)
        free = min([3, *(blocked + 1).tolist()])
        if len(goal) and goal[0] + 1 < free:
            free = 3
        assert info["ahead"] == free
        action = env.action_space.sample()
        _, reward, terminated, truncated, info = env.step(action)
        assert (info["ahead"] == 0) == (reward == -1)
        if terminated or truncated:
            ends += int(reward == -1)
            _, info = env.reset()
    assert ends > 3


def test_insulin_lowers_glucose_and_carbohydrate_raises_it() -> None:
    env = make("Diabetes-v0")
    ends = {}
    for dose in (-1.0, -0.5, 0.5):
        env.reset(seed=3)
        for _ in range(24):
            *_, info = env.step(np.array([dose], dtype=np.float32))
        ends[dose] = info["glucose"]
    assert ends[-1.0] > ends[-0.5] > ends[0.5]

    patient: Any = env.unwrapped
    fed = []
    for meals in ({}, {2: 30.0}):
        env.reset(seed=3)
        patient.meals = meals
        fed.append([env.step(np.array([-0.5], dtype=np.float32))[4]["glucose"] for _ in range(8)])
    np.testing.assert_array_equal(fed[0][:2], fed[1][:2])
    assert fed[1][-1] > fed[0][-1] + 10


def test_the_greenhouse_shows_its_air_where_the_entry_looks() -> None:
    env = make("Greenhouse-v0")
    from lettuce_greenhouse_gym import OBSERVABLE

    internal = hyperparams.load("sac")["Greenhouse-v0"]["vec_env_wrapper"][0]["persist_sb3.wrappers.VecInternalState"]
    found = {name: OBSERVABLE.names[int(source[4:-1])] for name, source in internal["sources"].items()}
    assert found == {"co2": "co2_ppm", "temperature": "indoor_temp", "humidity": "rh"}
    env.reset(seed=0)
    ends = [env.step(np.zeros(3, dtype=np.float32))[2:4] for _ in range(144)]
    assert ends[:-1] == [(False, False)] * 143 and ends[-1][1]


def test_shield_takes_the_second_entry_and_the_run_remembers_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("Obstacles-v0").close()
    monkeypatch.setattr("sys.argv", ["train.py"])
    small = ["-n", "32", "--eval-freq", "-1", "--device", "cpu", "--verbose", "0", "-f", str(tmp_path)]
    params = ["-params", "n_envs:1", "n_steps:16", "batch_size:16", "n_epochs:1"]
    which = ["--gym-packages", "examples.minigrid_obstacles", "--algo", "ppo", "--env", "Obstacles-v0", "--shield"]
    train([*which, *small, *params])
    run = Run(tmp_path / "ppo" / "Obstacles-v0_1")
    assert run.arguments["gym_packages"] == ["examples.minigrid_obstacles"]
    venv = run.make_env(1)
    assert isinstance(venv, VecActionShield)
    venv.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "sac", "--env", "GridLifeContinuous-v0"], "Greenhouse-v0, GridLifeContinuousScent-v0, Nav"),
        (["--algo", "dqn", "--env", "CartPole-v1"], "PPO on CartPole-v1 would have some"),
        (["--algo", "ppo", "--env", "CartPole-v1", "-conf", "mine.yml"], "-conf mine.yml"),
        (["--persist", "examples/cartpole.yml"], "--shield"),
    ],
)
def test_a_shield_that_is_not_there_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train([*arguments, "--shield"])
    assert message in capsys.readouterr().err
