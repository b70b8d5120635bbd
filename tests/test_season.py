"""GridLife's seasons: the weather and the reserves in closed form, and that no one setpoint is right for them all."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from persist_sb3.envs import ENV_IDS
from persist_sb3.envs.batch import GridLifeCore
from persist_sb3.envs.dynamics import ACTIONS, GridLifeParams
from persist_sb3.envs.oracle import BeamPlanner, ExactViability, FullView
from persist_sb3.envs.oracle.empowerment import viable_empowerment
from persist_sb3.envs.oracle.model import Foresight
from persist_sb3.envs.vector import GridLifeVecEnv

BARE: dict[str, Any] = {
    "size": 3,
    "hot_spots": 0,
    "cold_spots": 0,
    "hazards": 0,
    "food": 0,
    "ringed_food": 0,
    "items": 0,
    "slip": 0.0,
    "constraints": ["integrity >= 0.001"],
}
SEASON: dict[str, Any] = {key: value for key, value in ENV_IDS["GridLifeSeason-v0"].items() if key != "scent"}


def temperatures(steps: int, layout_seed: int = 0, **world: Any) -> NDArray[np.float64]:
    env = gym.make("GridLife-v0", **BARE | world)
    _, info = env.reset(seed=1, options={"layout_seed": layout_seed})
    return np.array([info["internal"], *(env.step(0)[4]["internal"] for _ in range(steps))])


@pytest.mark.parametrize(("season", "sign"), [(0, 1.0), (4, -1.0), (2, 0.0)])
def test_spells_in_closed_form(season: int, sign: float) -> None:
    """In a spell the gap to ``0.5 + climate`` closes by a share ``temp_rate`` a step; then that to 0.5."""
    climate, rate = 0.3, 0.1
    weather: dict[str, Any] = {"climate": climate, "year": 8, "spell_every": 10, "spell_length": 4, "season": season}
    temp = temperatures(10, temp_rate=rate, **weather)[:, 1]
    calm = 0.5 + (temp[0] - 0.5) * (1.0 - rate) ** np.arange(7)
    np.testing.assert_allclose(temp[:7], calm, atol=1e-12)
    target = 0.5 + sign * climate
    np.testing.assert_allclose(temp[7:], target + (calm[-1] - target) * (1.0 - rate) ** np.arange(1, 5), atol=1e-12)


def test_the_year_goes_by() -> None:
    """With ``temp_rate=1`` the temperature is the heat of the step, so the whole year can be read off."""
    weather: dict[str, Any] = {"climate": 0.4, "year": 6, "spell_every": 3, "spell_length": 1}
    temp = temperatures(36, layout_seed=1_000_000_004, temp_rate=1.0, **weather)[1:, 1]
    spells = 0.5 + 0.4 * np.cos(2.0 * np.pi * (1_000_000_004 % 6 + np.arange(12)) / 6.0)
    np.testing.assert_allclose(temp[2::3], spells, atol=1e-12)
    np.testing.assert_allclose(np.delete(temp, np.s_[2::3]), 0.5, atol=1e-12)


def test_reserves_keep_warm() -> None:
    path = temperatures(20, temp_rate=1.0, insulation=0.8)
    np.testing.assert_allclose(path[1:, 1], 0.5 + 0.8 * (path[:-1, 0] - 0.7), atol=1e-12)
    # The temperature does not leave its range, whatever the weather.
    assert temperatures(3, temp_rate=1.0, climate=1.0, spell_length=64, season=0)[1:, 1].tolist() == [1.0] * 3


def test_the_oracle_foresees_the_weather() -> None:
    n = 40
    params = replace(GridLifeParams(**SEASON), slip=0.0, year=8, spell_every=5, spell_length=3)
    core = GridLifeCore(n, params, same_step=False, backend="numpy")
    core.seed(range(n))
    core.begin()
    for step in range(7):
        before = core.snapshot()
        gone = ((before.due > 0) << np.arange(params.slots)).sum(axis=1)
        foresight = Foresight(params, before.heat, before.hazard, before.places, before.layout_seed % 8)
        future = foresight.step(
            before.cell[:, None], before.internal.T[:, :, None], gone[:, None], before.step[:, None] + 1
        )
        core.step(np.full(n, step % len(ACTIONS)))
        alive = core.snapshot().alive
        np.testing.assert_array_equal(future.internal[:, alive, step % len(ACTIONS)].T, core.internal[alive])
    assert alive.sum() > n / 2
    assert BeamPlanner(params, width=4, depth=3).plan(before).shape == (n,)


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ({"climate": 1.5}, "climate"),
        ({"insulation": -1.0}, "insulation"),
        ({"year": 0}, "year"),
        ({"spell_every": 0}, "spell_every"),
        ({"spell_length": 65}, "spell_length.*spell_every=64"),
        ({"season": 128}, r"season must be in \[0, year=128\)"),
        ({"season": -1}, "season"),
    ],
)
def test_no_such_season(world: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GridLifeParams(**world)


def test_what_stays_as_it_is_refuses_seasons() -> None:
    still = GridLifeParams(**{**{k: v for k, v in BARE.items() if k != "constraints"}, "climate": 0.1})
    with pytest.raises(ValueError, match=r"climate=0\.1"):
        ExactViability(still, 0)
    with pytest.raises(ValueError, match=r"insulation=0\.5"):
        ExactViability(replace(still, climate=0.0, insulation=0.5), 0)
    with pytest.raises(ValueError, match=r"climate=0\.1"):
        FullView(GridLifeVecEnv(2, climate=0.1))
    with pytest.raises(ValueError, match=r"climate=0\.1.*not told"):
        viable_empowerment(still, 0, [0.7, 0.5, 0.9], 1)


def lives(setpoint: float, season: int, n: int = 16) -> float:
    """
    :return: share of the episodes that an agent survives which walks to the nearest food when its energy is below the
        setpoint, and else stays
    """
    world = GridLifeVecEnv(n, flat=True, scent=True, split="validation", season=season, horizon=256, **SEASON)
    world.seed(0)
    seen: Any = world.reset()
    alive = np.ones(n, dtype=bool)
    for _ in range(256):
        down, right, energy = seen[:, -2], seen[:, -1], seen[:, -5]
        vertical = np.abs(down) >= np.abs(right)
        move = np.where(vertical, np.where(down > 0, 2, 1), np.where(right > 0, 4, 3))
        hungry = (energy < setpoint) & (np.abs(down) + np.abs(right) > 0)
        seen, _, _, infos = world.step(np.where(hungry, move, 0))
        alive &= np.array([not info["cost"] for info in infos])
    return float(alive.mean())


def test_no_setpoint_is_right_for_summer_and_winter() -> None:
    """
    With a constant energy ``e`` the temperature in calm is ``0.5 + 0.75 (e - 0.7)``, and the spell at midsummer or
    midwinter moves it by ``0.36 (1 - 0.93^20) = 0.276``. The limits are 0.3 and 0.7: a life at midsummer takes
    ``0.43 <= e <= 0.60``, one at midwinter ``0.80 <= e <= 0.97``.
    """
    gain, swing = 0.75, 0.36 * (1.0 - 0.93**20)
    warmest_fit, coldest_fit = 0.7 + (0.2 - swing) / gain, 0.7 - (0.2 - swing) / gain
    assert warmest_fit == pytest.approx(0.6, abs=0.01) and coldest_fit == pytest.approx(0.8, abs=0.01)
    # It eats 0.1 at a time, so its energy is above the setpoint most of the time.
    summer, winter = ({mu: lives(mu, season) for mu in (0.45, 0.7, 0.85)} for season in (0, 64))
    assert summer[0.45] > 0.5 and winter[0.85] > 0.9
    for mu in (0.45, 0.7, 0.85):
        assert min(summer[mu], winter[mu]) < 0.1
