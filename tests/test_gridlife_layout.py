"""Layouts are a pure function of their seed, follow the rules they are said to, and do not repeat between splits."""

from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persist_sb3.envs.dynamics import GridLifeParams
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.layout import SPLITS, Layouts, generate, pick

PARAMS = GridLifeParams()


def layouts(first: int, many: int, params: GridLifeParams = PARAMS) -> Layouts:
    return generate(params, np.arange(first, first + many, dtype=np.uint64))


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_a_layout_depends_on_its_seed_alone(seeds: list[int], one: int) -> None:
    one %= len(seeds)
    together = generate(PARAMS, np.array(seeds, dtype=np.uint64))
    alone = generate(PARAMS, np.array([seeds[one]], dtype=np.uint64))
    for name in Layouts._fields:
        assert np.array_equal(getattr(together, name)[one], getattr(alone, name)[0])


def test_everything_has_a_tile_of_its_own() -> None:
    _, hazard, places, start = layouts(0, 500)
    assert (hazard.sum(axis=1) == PARAMS.hazards).all()
    occupied = np.concatenate([places, start[:, None]], axis=1)
    assert all(len(set(row)) == len(row) for row in occupied.tolist())
    assert not hazard[np.arange(500)[:, None], occupied].any()


def test_food_and_items_lie_where_it_costs_to_get_them() -> None:
    heat, hazard, places, start = layouts(0, 500)
    off = np.abs(heat.astype(float) - 0.5)
    rows = np.arange(500)
    off_at = off[rows[:, None], places]
    harsh_enough = (off > PARAMS.harsh).sum(axis=1) >= 3
    assert harsh_enough.mean() > 0.9
    assert (off_at[:, 2:5][harsh_enough] > PARAMS.harsh).all()
    assert (off_at[:, :2] <= PARAMS.comfort).mean() > 0.99
    assert (off[rows, start] <= PARAMS.comfort).mean() > 0.99
    grid = hazard.reshape(-1, 10, 10)
    padded = np.pad(grid, ((0, 0), (1, 1), (1, 1)))
    around = [padded[:, 1 + dy : 11 + dy, 1 + dx : 11 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    beside = np.sum(around, axis=0).reshape(500, 100)
    inner = (places // 10 % 9 > 0) & (places % 10 % 9 > 0)
    ringed = beside[rows, places[:, 0]][inner[:, 0]]
    assert ringed.min() >= 4  # six, less what another food's tile takes away
    assert np.median(ringed) == 6
    item = places[:, 5:]
    assert ((off[rows[:, None], item] > PARAMS.harsh) | (beside[rows[:, None], item] > 0)).all()


def test_heat_is_the_sum_of_spots() -> None:
    params = GridLifeParams(hot_spots=1, cold_spots=0, spot_amplitude=0.4, spot_sigma=2.0)
    heat, *_ = layouts(0, 20, params)
    for row in heat.reshape(-1, 10, 10).astype(float):
        y, x = np.unravel_index(row.argmax(), row.shape)
        distance = (np.arange(10)[:, None] - y) ** 2 + (np.arange(10) - x) ** 2
        np.testing.assert_allclose(row, 0.5 + 0.4 * np.exp(-distance / 8.0), atol=1e-6)


def test_spots_keep_their_distance() -> None:
    params = GridLifeParams(hot_spots=2, cold_spots=0, spot_sigma=0.1, spot_distance=5.0)
    heat, *_ = layouts(0, 300, params)
    for row in heat:
        y, x = np.divmod(np.flatnonzero(row > 0.9), 10)
        assert len(y) == 2
        assert np.hypot(y[0] - y[1], x[0] - x[1]) > 5.0


@given(st.integers(1, 30), st.data())
@settings(deadline=None)
def test_pick_takes_the_allowed_tile_of_the_given_rank(area: int, data: st.DataObject) -> None:
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=area, max_size=area)))
    u = data.draw(st.floats(0, 1, exclude_max=True))
    tile = int(pick(allowed[None], np.ones((1, area), dtype=bool), np.array([u]))[0])
    candidates = np.flatnonzero(allowed) if allowed.any() else np.arange(area)
    assert tile == candidates[int(u * len(candidates))]


def test_starts_are_uniform_over_comfortable_free_tiles() -> None:
    params = GridLifeParams(hot_spots=0, cold_spots=0, hazards=0, food=0, ringed_food=0, items=0, size=5)
    *_, start = layouts(0, 25_000, params)
    counts = np.bincount(start, minlength=25)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 51.2  # the 99.9 % quantile with 24 degrees of freedom


def test_splits_are_disjoint() -> None:
    ranges = sorted(SPLITS.values())
    assert all(low < high for low, high in ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))


@pytest.mark.parametrize("split", SPLITS)
def test_episodes_are_played_on_layouts_of_the_split(split: str) -> None:
    env = gym.make("GridLife-v0", split=split)
    low, high = SPLITS[split]
    env.reset(seed=1)
    seeds = [env.reset()[1]["layout_seed"] for _ in range(100)]
    assert all(low <= seed < high for seed in seeds)
    assert len(set(seeds)) == 100


def test_a_layout_seed_can_be_forced() -> None:
    env = GridLifeEnv()
    _, info = env.reset(seed=1, options={"layout_seed": 2_000_000_007})
    assert info["layout_seed"] == 2_000_000_007
    heat, hazard, places, start = generate(env.params, np.array([2_000_000_007], dtype=np.uint64))
    snapshot = env.snapshot()
    assert np.array_equal(snapshot.heat, heat[0])
    assert np.array_equal(snapshot.hazard, hazard[0])
    assert np.array_equal(snapshot.places, places[0])
    assert snapshot.cell == start[0]
    assert env.reset()[1]["layout_seed"] != 2_000_000_007


def test_all_episodes_can_share_one_layout() -> None:
    env = gym.make("GridLife-v0", layout_seed=5)
    env.reset(seed=0)
    assert {env.reset()[1]["layout_seed"] for _ in range(20)} == {5}


@pytest.mark.parametrize("bad", [-1, 2**63, 1.5, "7"])
def test_a_bad_layout_seed_is_refused(bad: object) -> None:
    env = gym.make("GridLife-v0")
    with pytest.raises(ValueError, match="layout_seed must be an integer"):
        env.reset(options={"layout_seed": bad})


def test_an_unknown_option_or_split_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no option 'layout'.*layout_seed"):
        gym.make("GridLife-v0").reset(options={"layout": 3})
    with pytest.raises(ValueError, match="'train', 'validation', 'test', not 'dev'"):
        gym.make("GridLife-v0", split="dev")
