"""Each parameter of GridLife does what its description says: closed forms and long-run frequencies."""

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from persist_sb3.envs.dynamics import GridLifeParams, waiting_times
from persist_sb3.envs.gridlife import GridLifeEnv

STAY, UP, DOWN, LEFT, RIGHT = range(5)
NOWHERE: dict[str, Any] = {
    "hot_spots": 0,
    "cold_spots": 0,
    "hazards": 0,
    "food": 0,
    "ringed_food": 0,
    "items": 0,
    "slip": 0.0,
}


def immortal(**settings: Any) -> GridLifeEnv:
    """An environment in which only empty energy kills."""
    env = GridLifeEnv(**{"constraints": ["energy >= 1e-9"], **settings})
    env.reset(seed=0)
    return env


def arrange(env: GridLifeEnv, **changes: Any) -> None:
    """Change what the world is like."""
    now = env.snapshot()
    arrays: dict[str, Any] = {name: np.asarray(value, getattr(now, name).dtype) for name, value in changes.items()}
    env.restore(dataclasses.replace(now, **arrays))


def test_energy_decays_with_time_and_movement() -> None:
    env = immortal(**NOWHERE, energy_decay=0.004, move_cost=0.003)
    arrange(env, internal=[0.9, 0.5, 0.9], cell=55)
    for action in [STAY] * 5 + [UP, DOWN, LEFT, RIGHT]:
        env.step(action)
    assert env.get_internal()[0] == pytest.approx(0.9 - 9 * 0.004 - 4 * 0.003, abs=1e-12)
    arrange(env, cell=0, internal=[0.9, 0.5, 0.9])
    env.step(UP)  # into the wall is no movement
    assert env.get_internal()[0] == pytest.approx(0.9 - 0.004, abs=1e-12)


@pytest.mark.parametrize(("action", "cell"), [(STAY, 55), (UP, 45), (DOWN, 65), (LEFT, 54), (RIGHT, 56)])
def test_actions_move_the_agent(action: int, cell: int) -> None:
    env = immortal(**NOWHERE)
    arrange(env, cell=55)
    env.step(action)
    assert env.snapshot().cell == cell


def test_temperature_relaxes_to_the_tile() -> None:
    env = immortal(**NOWHERE, temp_rate=0.13)
    heat = np.full(100, 0.75, dtype=np.float32)
    arrange(env, heat=heat, internal=[0.9, 0.4, 0.9])
    for k in range(1, 20):
        env.step(STAY)
        assert env.get_internal()[1] == pytest.approx(0.75 + (0.4 - 0.75) * (1 - 0.13) ** k, abs=1e-12)


def test_hazards_cost_integrity_and_it_mends_elsewhere() -> None:
    env = immortal(**{**NOWHERE, "hazards": 1}, hazard_damage=0.05, repair=0.01)
    hazard = np.zeros(100, dtype=bool)
    hazard[55] = True
    arrange(env, hazard=hazard, cell=54, internal=[0.9, 0.5, 0.8])
    expected = 0.8
    for action, change in [(RIGHT, -0.05), (STAY, -0.05), (LEFT, 0.01), (STAY, 0.01)]:
        env.step(action)
        expected += change
        assert env.get_internal()[2] == pytest.approx(expected, abs=1e-12)


def test_variables_stay_between_zero_and_one() -> None:
    env = immortal(**{**NOWHERE, "food": 1, "hazards": 1}, food_energy=0.9, repair=0.5, hazard_damage=1.0)
    hazard = np.zeros(100, dtype=bool)
    hazard[53] = True
    arrange(env, hazard=hazard, places=[55], due=[0], cell=54, internal=[0.9, 0.5, 0.9])
    env.step(RIGHT)
    assert env.get_internal()[[0, 2]].tolist() == [1.0, 1.0]
    env.step(LEFT)
    env.step(LEFT)
    assert env.get_internal()[2] == 0.0


def test_food_feeds_and_items_pay() -> None:
    env = immortal(**{**NOWHERE, "food": 1, "items": 1}, food_energy=0.25, food_regrowth=0.0, item_regrowth=0.0)
    arrange(env, places=[55, 56], due=[0, 0], cell=54, internal=[0.5, 0.5, 0.9])
    rewards = [env.step(RIGHT)[1], env.step(RIGHT)[1], env.step(STAY)[1], env.step(LEFT)[1]]
    assert rewards == [0.0, 1.0, 0.0, 0.0]
    assert env.get_internal()[0] == pytest.approx(0.5 + 0.25 - 4 * 0.01 - 3 * 0.002, abs=1e-12)


@pytest.mark.parametrize("what", ["food_regrowth", "item_regrowth"])
def test_regrowth_takes_one_over_p_steps_on_average(what: str) -> None:
    p = 0.2
    there = {"food": 1} if what == "food_regrowth" else {"items": 1}
    env = immortal(**{**NOWHERE, **there}, **{what: p}, energy_decay=0.0, horizon=10**4)
    arrange(env, places=[int(env.snapshot().cell)], due=[0])
    taken_at, due = [], 0
    for step in range(1, 8000):
        env.step(STAY)  # on its tile, where it is taken as soon as it is back
        if (coming_back := int(env.snapshot().due[0])) != due:
            taken_at.append(step)
            due = coming_back
    waits = np.diff(taken_at)
    mean, deviation = 1 / p, np.sqrt(1 - p) / p
    assert np.mean(waits) == pytest.approx(mean, abs=4 * deviation / np.sqrt(len(waits)))
    assert np.mean(waits == 1) == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / len(waits)))


def test_slips_are_as_frequent_as_they_should_be() -> None:
    p = 0.3
    env = immortal(**{**NOWHERE, "slip": p}, energy_decay=0.0, move_cost=0.0, horizon=10**5)
    moved = 0
    for _ in range(10_000):
        if not env.action_masks().all():
            arrange(env, cell=55)
        here = int(env.snapshot().cell)
        env.step(STAY)
        moved += int(env.snapshot().cell) != here
    # A slip takes one of five actions, four of which move.
    assert moved / 10_000 == pytest.approx(p * 0.8, abs=4 * np.sqrt(p * 0.8 / 10_000))


def test_waiting_times_are_geometric() -> None:
    table = waiting_times(0.1, 50)
    u = np.random.default_rng(0).random(200_000)
    waits = 1 + np.searchsorted(table, u, side="right")
    for k in (1, 2, 5, 20):
        chance = 0.1 * 0.9 ** (k - 1)
        assert np.mean(waits == k) == pytest.approx(chance, abs=4 * np.sqrt(chance / len(u)))
    assert (1 + np.searchsorted(waiting_times(0.0, 50), u, side="right") == 51).all()
    assert (1 + np.searchsorted(waiting_times(1.0, 50), u, side="right") == 1).all()


def test_the_start_is_near_the_setpoint() -> None:
    env = GridLifeEnv(start_spread=0.03)
    env.reset(seed=0)
    starts = np.array([env.reset()[1]["internal"] for _ in range(300)])
    assert (np.abs(starts - [0.7, 0.5, 0.9]) <= 0.03).all()
    np.testing.assert_allclose(starts.std(axis=0), 0.03 / np.sqrt(3), rtol=0.15)


def test_a_narrow_tolerance_does_not_start_dead() -> None:
    env = GridLifeEnv()
    env.set_tolerance(20.0)
    env.reset(seed=0)
    starts = np.array([env.reset()[1]["internal"] for _ in range(300)])
    assert env.viability.contains(starts).all()


def test_the_episode_ends_at_the_first_violated_constraint() -> None:
    env = GridLifeEnv(**NOWHERE)
    env.reset(seed=0)
    arrange(env, internal=[0.225, 0.5, 0.9])
    outcomes = [env.step(STAY)[2:] for _ in range(3)]
    assert [(dead, late, info["cost"]) for dead, late, info in outcomes] == [
        (False, False, 0.0),
        (False, False, 0.0),
        (True, False, 1.0),
    ]
    arrange(env, alive=True, step=0, internal=[0.9, 0.5, 0.65], hazard=np.ones(100, dtype=bool))
    assert env.step(STAY)[2] is True
    assert int(env.viability.violated(env.get_internal()[None])[0]) == 2


@pytest.mark.parametrize(("policy", "low", "high"), [("random", 30, 60), ("stay", 40, 60)])
def test_idle_lives_are_short(policy: str, low: int, high: int) -> None:
    env = GridLifeEnv(split="test")
    generator = np.random.default_rng(0)
    lives = []
    env.reset(seed=0)
    for _ in range(300):
        env.reset()
        done, steps = False, 0
        while not done:
            _, _, dead, late, _ = env.step(generator.integers(5) if policy == "random" else STAY)
            done, steps = dead or late, steps + 1
        lives.append(steps)
    assert low <= np.median(lives) <= high
    assert max(lives) < 512


def test_the_window_shows_the_surroundings() -> None:
    env = GridLifeEnv(**{**NOWHERE, "food": 1, "items": 1, "hazards": 1}, radius=1)
    env.reset(seed=0)
    heat = np.linspace(0, 1, 100, dtype=np.float32)
    hazard = np.zeros(100, dtype=bool)
    hazard[0] = True
    arrange(env, heat=heat, hazard=hazard, places=[11, 2], due=[0, 0], cell=2)
    observation, *_ = env.step(LEFT)  # to tile 1, at the upper edge
    food, item, hazards, warmth, outside = observation["window"].reshape(5, 3, 3)
    assert outside.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert food.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert item.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert hazards.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(warmth[1:], heat.reshape(10, 10)[:2, :3])


def test_the_scent_points_to_the_nearest_food() -> None:
    env = GridLifeEnv(**{**NOWHERE, "food": 2}, scent=True, scent_range=4.0, food_regrowth=0.0)
    env.reset(seed=0)
    arrange(env, places=[75, 58], due=[0, 0], cell=55, internal=[0.3, 0.5, 0.9])
    scent = env.step(STAY)[0]["scent"]
    np.testing.assert_allclose(scent, [np.exp(-1 / 4), 0.0], rtol=1e-6)  # two tiles down
    arrange(env, due=[10**6, 0])
    scent = env.step(UP)[0]["scent"]  # now one down and three right
    np.testing.assert_allclose(scent, np.exp(-3 / 4) * np.array([0.25, 0.75]), rtol=1e-6)
    arrange(env, due=[10**6, 10**6])
    assert env.step(STAY)[0]["scent"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("vector", "cell"),
    [
        ((0.5, 0.5), 55),
        ((0.51, 0.0), 65),
        ((-0.6, 0.59), 45),
        ((0.6, -1.0), 54),
        ((0.0, 1.0), 56),
        ((-0.8, 0.8), 45),
    ],
)
def test_the_larger_component_moves(vector: tuple[float, float], cell: int) -> None:
    env = GridLifeEnv(**NOWHERE, continuous=True)
    env.reset(seed=0)
    arrange(env, cell=55)
    env.step(np.array(vector, dtype=np.float32))
    assert env.snapshot().cell == cell


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"slip": 1.5}, r"slip must be in \[0, 1\], not 1.5"),
        ({"size": 0}, "size must be at least 1, not 0"),
        ({"spot_sigma": 0.0}, "spot_sigma must be positive"),
        ({"ringed_food": 9}, "ringed_food must be at most food=5"),
        ({"task": "sleep"}, "task must be 'items' or 'explore'"),
        ({"size": 4}, "size=4 has 16 tiles"),
        ({"constraints": ["energy + temp >= 0.5"]}, "limits on single variables.*'energy \\+ temp >= 0.5'"),
        ({"render_mode": "ascii"}, "render_mode must be None, 'rgb_array' or 'human'"),
    ],
)
def test_bad_values_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GridLifeEnv(**keywords)


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="no parameter 'hazard_damge': did you mean 'hazard_damage'"):
        gym.make("GridLife-v0", hazard_damge=0.1)
    with pytest.raises(TypeError, match="its parameters are size, radius"):
        GridLifeParams.from_keywords({"zzz": 1})
