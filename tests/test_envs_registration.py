"""The registered ids pass both environment checkers without a warning, and mean what their names say."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3

import persist_sb3
from persist_sb3.envs import ENV_IDS, register_envs


@pytest.fixture(autouse=True)
def _no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_checkers_find_nothing(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sb3(gym.make(env_id))
        check_gymnasium(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_scent_passes_too(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sb3(gym.make(env_id, scent=True))


def test_spaces_are_those_of_the_names() -> None:
    env = gym.make("GridLife-v0")
    assert isinstance(env.observation_space, spaces.Dict)
    assert env.observation_space["window"].shape == (5 * 5 * 5,)
    assert env.observation_space["internal"].shape == (3,)
    assert env.action_space == spaces.Discrete(5)
    assert gym.make("GridLifeFlat-v0").observation_space.shape == (128,)
    assert gym.make("GridLifeContinuous-v0").action_space == spaces.Box(-1.0, 1.0, (2,), np.float32)
    assert gym.make("GridLifeContinuousFlat-v0").observation_space.shape == (128,)
    assert gym.make("GridLifeExplore-v0").observation_space == env.observation_space


def test_every_id_has_a_twin_with_box_actions() -> None:
    discrete = [env_id for env_id in ENV_IDS if "Continuous" not in env_id]
    twins = {env_id.replace("GridLife", "GridLifeContinuous") for env_id in discrete}
    assert twins == set(ENV_IDS) - set(discrete) and len(discrete) == 12
    for env_id in twins:
        assert gym.make(env_id).action_space == spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_exploring_pays_each_tile_once() -> None:
    env = gym.make("GridLifeExplore-v0", slip=0.0, hazards=0, food=0, ringed_food=0, hot_spots=0, cold_spots=0)
    env.reset(seed=0)
    to_the_corner = [1] * 10 + [3] * 10
    for action in to_the_corner:
        env.step(action)
    _, back_in_the_corner = [env.step(action)[1] for action in (4, 3)]
    assert back_in_the_corner == 0.0
    snapshot = env.get_wrapper_attr("snapshot")()
    assert snapshot.total == snapshot.visited.sum() - 1  # every tile but the first paid


def test_registering_again_changes_nothing() -> None:
    before = dict(gym.registry)
    register_envs()
    assert dict(gym.registry) == before
    assert persist_sb3.__version__


def test_the_environment_truncates_by_itself() -> None:
    assert all(gym.spec(env_id).max_episode_steps is None for env_id in ENV_IDS)
    env = gym.make("GridLife-v0", horizon=5, constraints=["energy >= 0.1"])
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_make_vec_uses_the_batch_core(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gym.make_vec(env_id, num_envs=3, vectorization_mode="vector_entry_point", backend="numpy")
    assert type(envs.unwrapped).__name__ == "GridLifeVectorEnv"
    assert envs.single_observation_space == gym.make(env_id).observation_space
    observations, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observations)
    observations, *_ = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(observations)
