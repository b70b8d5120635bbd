"""Recovery RL's navigation domains, against Monte Carlo, brute force on a grid, and what the checkers ask for."""

import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3

from persist_sb3.envs import NAVIGATION_IDS
from persist_sb3.envs.navigation import (
    OBSTACLES,
    NavigationEnv,
    collision_probability,
    signed_distance,
)
from persist_sb3.wrappers import InternalState


def inside(position: np.ndarray, layout: int) -> np.ndarray:
    x, y = position[..., 0], position[..., 1]
    if layout == 2:
        return (x > -30) & (x < -20) & (abs(y) < 7.5)
    walls = (x > -100) & (x < 150) & (abs(y) > 5) & (abs(y) < 10)
    return walls | ((x > -100) & (x < -80) & (abs(y) < 5))


@pytest.mark.parametrize("env_id", NAVIGATION_IDS)
def test_checkers_find_nothing(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sb3(gym.make(env_id))
        check_gymnasium(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("layout", OBSTACLES)
def test_the_signed_distance_is_that_to_the_nearest_point_of_an_edge(layout: int) -> None:
    rng = np.random.default_rng(0)
    position = (
        rng.uniform([-40, -12], [-10, 12], (200, 2)) if layout == 2 else rng.uniform([-110, -12], [-70, 12], (200, 2))
    )
    along = np.linspace(0, 1, 2001)[:, None]
    edges = []
    for x0, x1, y0, y1 in OBSTACLES[layout]:
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
        edges += [a + along * (b - a) for a, b in itertools.pairwise(corners)]
    outline = np.concatenate(edges)
    nearest = np.sqrt(((position[:, None] - outline) ** 2).sum(axis=2).min(axis=1))
    distance = signed_distance(position, OBSTACLES[layout])
    outside = ~inside(position, layout)
    # Walls that touch share an edge, which is none of the outline: inside, only the sign is compared there.
    np.testing.assert_allclose(distance[outside], nearest[outside], atol=0.08)
    assert (distance[~outside] < 0).all()
    if layout == 2:
        np.testing.assert_allclose(-distance[~outside], nearest[~outside], atol=0.01)


@pytest.mark.parametrize("layout", OBSTACLES)
def test_the_collision_probability_is_how_often_it_happens(layout: int) -> None:
    rng = np.random.default_rng(1)
    if layout == 2:
        position = rng.uniform([-31.2, -8.7], [-29, -6.5], (40, 2))
    else:
        position = rng.uniform([-80.5, 3.9], [-78.5, 5], (40, 2))
    action = rng.uniform(-1.3, 1.3, (40, 2))
    draws = 0.05 * rng.standard_normal((20_000, 1, 2))
    often = inside(position + action.clip(-1, 1) + draws, layout).mean(axis=0)
    probability = collision_probability(position, action, OBSTACLES[layout], 0.05)
    assert ((probability > 0.05) & (probability < 0.95)).any()
    np.testing.assert_allclose(probability, often, atol=0.015)


@pytest.mark.parametrize("layout", OBSTACLES)
def test_without_noise_it_is_the_viability_kernel_of_a_grid(layout: int) -> None:
    low, high = ((-35.0, -12.0), (-15.0, 12.0)) if layout == 2 else ((-86.0, -12.0), (-70.0, 12.0))
    axes = [np.arange(a, b + 0.25, 0.5) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    moves = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    # The boundary counts as inside the limits.
    viable = ~inside(grid, layout)
    while True:
        padded = np.pad(viable, 2)
        n, m = viable.shape
        reached = {(i, j): padded[2 + i : 2 + i + n, 2 + j : 2 + j + m] for i, j in moves}
        kept = viable & np.any(list(reached.values()), axis=0)
        if (kept == viable).all():
            break
        viable = kept
    assert (viable == ~inside(grid, layout)).all()
    core = viable[2:-2, 2:-2]
    states = grid[2:-2, 2:-2][core]
    for (i, j), safe in reached.items():
        action = np.broadcast_to(np.array([i, j]) / 2.0, states.shape)
        risk = collision_probability(states, action, OBSTACLES[layout], 0.0)
        np.testing.assert_array_equal(risk == 0.0, safe[2:-2, 2:-2][core])


def test_an_episode_ends_in_the_wall_or_at_the_goal() -> None:
    env = InternalState(NavigationEnv(layout=1, noise=0.0, start_noise=0.0))
    env.reset(seed=0)
    steps = [env.step(np.array([0.0, 1.0])) for _ in range(6)]
    assert [step[2] for step in steps] == [False] * 5 + [True]
    assert [step[4]["cost"] for step in steps] == [0.0] * 5 + [1.0]
    assert not steps[-1][4]["success"]
    np.testing.assert_allclose([step[4]["internal"][0] for step in steps], [4, 3, 2, 1, 0, -1])

    env.reset(seed=0)
    rewards = []
    while True:
        _, reward, terminated, _, info = env.step(np.array([1.0, 0.0]))
        rewards.append(reward)
        if terminated:
            break
    assert info["success"] and info["cost"] == 0.0
    np.testing.assert_allclose(rewards, -np.arange(49.0, 2.0, -1.0))


def test_noise_is_seeded() -> None:
    paths = []
    for seed in (3, 3, 4):
        env = NavigationEnv(layout=2)
        env.reset(seed=seed)
        paths.append([env.step(np.zeros(2, dtype=np.float32))[0] for _ in range(3)])
    np.testing.assert_array_equal(paths[0], paths[1])
    assert (np.array(paths[0]) != np.array(paths[2])).all()


@pytest.mark.parametrize("parameters", [{"layout": 3}, {"noise": -1.0}, {"start_noise": -1.0}, {"sight": 0.0}])
def test_bad_parameters_are_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(parameters))):
        NavigationEnv(**parameters)  # type: ignore[arg-type]
