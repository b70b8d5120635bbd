"""Exact viability: against closed forms, against brute force through the environment, and as a guarantee in it."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from persist_sb3.envs.batch import GridLifeCore
from persist_sb3.envs.dynamics import ACTIONS, SETPOINT, GridLifeParams
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.interface import make_viability
from persist_sb3.envs.layout import generate
from persist_sb3.envs.oracle import ExactViability
from persist_sb3.viability import ViabilitySet

NOTHING: dict[str, Any] = {
    "hazards": 0, "food": 0, "ringed_food": 0, "items": 0, "hot_spots": 0, "cold_spots": 0,
    "slip": 0.0, "energy_decay": 0.0, "move_cost": 0.0, "spot_distance": 1.0,
}  # fmt: skip
#: All changes of energy and integrity are multiples of 0.02, the spacing of the default levels.
FULL: dict[str, Any] = {
    "hazards": 3, "food": 1, "items": 0, "hot_spots": 1, "cold_spots": 1, "spot_distance": 2.0, "slip": 0.0,
    "ringed_food": 0, "food_regrowth": 1.0, "energy_decay": 0.02, "move_cost": 0.02, "hazard_damage": 0.08,
    "repair": 0.02,
}  # fmt: skip
WORLDS = [
    ({"size": 3}, 0),
    ({"size": 4}, 1),
    ({"size": 4, "temp_rate": 0.2, "spot_sigma": 2.0}, 2),
    ({"size": 4, "food": 2, "food_energy": 0.2, "energy_decay": 0.04, "temp_rate": 0.15}, 3),
]


def full(size: int = 4, **changes: Any) -> GridLifeParams:
    return GridLifeParams(size=size, **{**FULL, **changes})


def distance(size: int, tile: int) -> NDArray[np.int64]:
    row, col = np.divmod(np.arange(size**2), size)
    return np.abs(row - tile // size) + np.abs(col - tile % size)


def only(constraint: str) -> ViabilitySet:
    return make_viability([constraint], SETPOINT)


def states(n: int, area: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, area, n), rng.uniform([0.2, 0.3, 0.6], [1.0, 0.7, 1.0], (n, 3))


@pytest.mark.parametrize("seed", range(3))
def test_energy_has_to_last_to_the_food(seed: int) -> None:
    """
    Food at distance ``k`` is reached with the ``k``-th step, so energy has to last ``k - 1`` steps; then it is eaten
    at each step. Viable iff ``energy - (k - 1) (decay + move) >= 0.2``.
    """
    params = GridLifeParams(
        size=5,
        **{**NOTHING, "food": 1, "food_regrowth": 1.0, "energy_decay": 0.06, "move_cost": 0.02, "food_energy": 0.3},
    )
    exact = ExactViability(params, seed, levels=(401, 2, 2), viability=only("energy >= 0.2"))
    cell, x = states(5000, 25, seed)
    steps = distance(5, exact.layout.places[0])[cell]
    slack = x[:, 0] - 0.2 - np.maximum(steps - 1, 0) * 0.08
    lower, upper = exact.kernel.at(cell, x)
    spacing = 0.8 / 400
    assert (slack[lower] >= 0.0).all()
    assert (slack[~upper] < 0.0).all()
    np.testing.assert_array_equal(lower[slack > 2 * spacing], True)
    np.testing.assert_array_equal(upper[slack < -2 * spacing], False)
    assert 0.1 < lower.mean() < upper.mean() < 0.99


def test_integrity_has_to_last_to_firm_ground() -> None:
    """All tiles but one are hazards: ``k`` steps away from it, ``k - 1`` of them do damage."""
    params = GridLifeParams(size=3, **{**NOTHING, "hazards": 8, "hazard_damage": 0.1})
    exact = ExactViability(params, 0, levels=(2, 2, 401), viability=only("integrity >= 0.6"))
    cell, x = states(5000, 9, 0)
    steps = distance(3, int(np.flatnonzero(~exact.layout.hazard)[0]))[cell]
    slack = x[:, 2] - 0.6 - np.maximum(steps - 1, 0) * 0.1
    lower, upper = exact.kernel.at(cell, x)
    assert (slack[lower] >= 0.0).all()
    assert (slack[~upper] < 0.0).all()
    assert (lower == upper)[np.abs(slack) > 0.003].all()


@pytest.mark.parametrize(("spot", "sign"), [("hot_spots", 1.0), ("cold_spots", -1.0)])
def test_temperature_lasts_for_as_long_as_it_must(spot: str, sign: float) -> None:
    """
    The whole grid has heat 1 (or 0), so that ``1 - T_h = (1 - T_0) 0.9^h``, which must stay above 0.3 for ``h`` steps.
    """
    params = GridLifeParams(size=2, **{**NOTHING, spot: 1, "spot_sigma": 1e9, "temp_rate": 0.1})
    viability = only("temp in [0.3, 0.7]")
    for horizon in (1, 3, 6):
        exact = ExactViability(params, 0, levels=(2, 4000, 2), horizon=horizon, viability=viability)
        cell, x = states(2000, 4, horizon)
        hottest = 1.0 - 0.3 / 0.9**horizon
        slack = hottest - (0.5 + sign * (x[:, 1] - 0.5))
        lower, upper = exact.kernel.at(cell, x)
        assert (slack[lower] >= 0.0).all()
        assert (slack[~upper] < 0.0).all()
        assert (lower == upper)[np.abs(slack) > 0.4 / 4000 * horizon].all()
        assert 0.1 < lower.mean() < 0.95


def test_a_state_lies_between_the_levels_it_is_rounded_to() -> None:
    exact = ExactViability(full(), 0, levels=(14, 10, 8))
    _, x = states(2000, 16, 0)
    low, high = exact.lattice.index(x, upper=False), exact.lattice.index(x, upper=True)
    for j, (limit, spacing) in {0: (0.2, 0.8 / 13), 2: (0.6, 0.4 / 7)}.items():
        assert (limit + low[j] * spacing <= x[:, j]).all()
        assert (limit + high[j] * spacing >= x[:, j]).all()
        np.testing.assert_array_equal(high[j] - low[j], 1)
    box = 0.3 + low[1] * 0.04
    assert ((box <= x[:, 1]) & (x[:, 1] <= box + 0.04)).all()


@pytest.mark.parametrize(("changes", "seed"), WORLDS)
def test_the_kernels_are_nested_and_more_energy_or_integrity_never_hurts(changes: dict[str, Any], seed: int) -> None:
    exact = ExactViability(full(**changes), seed)
    lower, upper = exact.kernel.lower, exact.kernel.upper
    assert (lower <= upper).all()
    for kernel in (lower, upper):
        assert (np.diff(kernel.astype(int), axis=2) >= 0).all()
        assert (np.diff(kernel.astype(int), axis=4) >= 0).all()
    # Neither everything nor nothing, and mostly decided.
    assert 0.2 < lower.mean() < upper.mean() < 0.98
    assert upper.mean() - lower.mean() < 0.15


@pytest.mark.parametrize(("changes", "seed"), WORLDS)
def test_safe_actions_keep_the_agent_alive(changes: dict[str, Any], seed: int) -> None:
    params = full(**changes, horizon=600)
    exact = ExactViability(params, seed)
    cell, x = states(400, params.size**2, seed)
    inside = exact.contains(cell, x)
    n = int(inside.sum())
    assert n > 50
    core = GridLifeCore(n, params, same_step=False)
    core.restore(exact.worlds(cell[inside], x[inside]))
    rng = np.random.default_rng(seed)
    for _ in range(params.horizon):
        now = core.snapshot()
        present = now.due[:, : params.food] == 0
        safe = exact.safe_actions(now.cell, now.internal, present)
        np.testing.assert_array_equal(safe.any(axis=1), exact.contains(now.cell, now.internal, present))
        assert safe.any(axis=1).all()
        # Any safe action will do: a random one.
        _, _, terminated, _ = core.step((rng.uniform(size=safe.shape) * safe).argmax(axis=1))
        assert not terminated.any()


def test_safe_actions_keep_a_single_environment_alive() -> None:
    params = full()
    exact = ExactViability(params, 5)
    cell, x = states(12, 16, 5)
    inside = exact.contains(cell, x)
    snapshot = exact.worlds(cell[inside], x[inside])
    assert len(snapshot) > 5
    env = GridLifeEnv(size=4, **FULL)
    rng = np.random.default_rng(0)
    for i in range(len(snapshot)):
        env.restore(snapshot[i])
        for _ in range(100):
            now = env.snapshot()
            (safe,) = exact.safe_actions([now.cell], [now.internal], [now.due == 0])
            _, _, terminated, _, _ = env.step(int(rng.choice(np.flatnonzero(safe))))
            assert not terminated


def outlives(exact: ExactViability, cell: int, x: NDArray[np.float64], depth: int, present: Any = None) -> bool:
    """Whether some action sequence keeps the agent alive, by trying all in the environment."""
    sequences = np.indices((len(ACTIONS),) * depth).reshape(depth, -1)
    core = GridLifeCore(sequences.shape[1], exact.params, same_step=False)
    core.restore(exact.worlds([cell], x[None], present)[0])
    alive = np.ones(core.num_envs, dtype=bool)
    for actions in sequences:
        _, _, terminated, _ = core.step(actions)
        alive &= terminated == 0
    return bool(alive.any())


@pytest.mark.parametrize("food_regrowth", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_a_horizon_is_what_all_action_sequences_show(food_regrowth: float, seed: int) -> None:
    """Close to the limits, where much is decided within four steps."""
    depth = 4
    params = full(food=2, food_regrowth=food_regrowth, food_energy=0.06, energy_decay=0.04, hazards=6, temp_rate=0.3)
    exact = ExactViability(params, seed, levels=(81, 160, 21), horizon=depth)
    rng = np.random.default_rng(seed)
    n = 60
    cell = rng.integers(0, 16, n)
    x = np.where(
        rng.uniform(size=(n, 3)) < 0.5,
        rng.uniform([0.2, 0.3, 0.6], [0.3, 0.35, 0.7], (n, 3)),
        rng.uniform([0.2, 0.65, 0.6], [0.4, 0.7, 0.8], (n, 3)),
    )
    present = rng.uniform(size=(n, 2)) < 0.7
    lower, upper = exact.kernel.at(cell, x, present)
    truth = np.array([outlives(exact, cell[i], x[i], depth, present[i : i + 1]) for i in range(n)])
    assert not (lower & ~truth).any()
    assert not (truth & ~upper).any()
    assert (lower == upper).mean() > 0.7
    assert 2 < truth.sum() < n - 2


@pytest.mark.parametrize(("changes", "seed"), WORLDS[:2])
def test_outside_the_upper_kernel_nothing_helps(changes: dict[str, Any], seed: int) -> None:
    """What is outside that of five steps dies within five, and what is outside that of more steps dies as well."""
    params = full(**changes)
    forever, soon = ExactViability(params, seed), ExactViability(params, seed, horizon=5)
    assert (forever.kernel.upper <= soon.kernel.upper).all()
    cell, x = states(4000, params.size**2, seed)
    doomed = np.flatnonzero(~soon.kernel.at(cell, x)[1])[:25]
    assert len(doomed) > 5
    for i in doomed:
        assert not outlives(soon, cell[i], x[i], 5)


@pytest.mark.parametrize("start", ["corner", "middle"])
def test_slips_are_survived_with_the_right_probability(start: str) -> None:
    """
    Every tile but one is deadly. The agent stays, and dies when it slips into a move: with ``4/5 slip`` a step in the
    middle; with ``2/5 slip`` in a corner, where two moves run into the edge.
    """
    slip, steps = 0.3, 7
    params = GridLifeParams(size=3, **{**NOTHING, "hazards": 8, "hazard_damage": 0.9, "slip": slip})
    wanted = 0 if start == "corner" else 4
    layouts = generate(params, np.arange(100, dtype=np.uint64))
    seed = int(np.flatnonzero(~layouts.hazard[:, wanted])[0])
    exact = ExactViability(params, seed, levels=(2, 2, 5), viability=only("integrity >= 0.6"))
    expected = (1.0 - (0.4 if start == "corner" else 0.8) * slip) ** steps
    for bound in exact.survival(steps).at([wanted], [SETPOINT]):
        assert bound == pytest.approx([expected])
    assert not exact.contains([wanted], [SETPOINT])


def test_regrowth_is_awaited_with_the_right_probability() -> None:
    """On a tile whose food was eaten, with energy for ``m - 1`` steps: it has to come back within ``m``."""
    regrowth, m = 0.2, 4
    params = GridLifeParams(
        size=2,
        **{**NOTHING, "food": 1, "food_regrowth": regrowth, "energy_decay": 0.05, "move_cost": 0.5, "food_energy": 0.6},
    )
    exact = ExactViability(params, 0, levels=(33, 2, 2), viability=only("energy >= 0.2"))
    cell = exact.layout.places[:1]
    x = [[0.2 + (m - 0.5) * 0.05, 0.5, 0.9]]
    assert exact.survival(m - 1).at(cell, x, [[False]])[0] == [1.0]
    lower, upper = exact.survival(m).at(cell, x, [[False]])
    assert lower == upper == pytest.approx([1.0 - (1.0 - regrowth) ** m])
    assert exact.survival(m).at(cell, x, [[True]])[0] == [1.0]


@pytest.mark.parametrize("steps", [1, 10])
def test_without_chance_survival_is_the_kernel(steps: int) -> None:
    params = full(size=3)
    exact = ExactViability(params, 4, horizon=steps)
    survival = exact.survival(steps)
    np.testing.assert_array_equal(survival.lower, exact.kernel.lower)
    np.testing.assert_array_equal(survival.upper, exact.kernel.upper)


def test_chance_never_adds_to_the_kernel_and_no_policy_beats_the_upper_bound() -> None:
    """In the kernel survival is certain; and whoever stays where he is survives at most as often as is possible."""
    params = full(size=3, slip=0.1, food_regrowth=0.3)
    exact = ExactViability(params, 4, horizon=8)
    survival = exact.survival(8)
    assert (survival.lower <= survival.upper + 1e-12).all()
    np.testing.assert_array_equal(exact.kernel.lower <= (survival.lower > 1.0 - 1e-12), True)
    assert (exact.kernel.upper <= ExactViability(full(size=3), 4, horizon=8).kernel.upper).all()

    cell, x = states(1, 9, 1)
    n = 20_000
    core = GridLifeCore(n, params, same_step=False)
    core.restore(exact.worlds(np.repeat(cell, n), np.repeat(x, n, axis=0)))
    alive = np.ones(n, dtype=bool)
    for _ in range(8):
        _, _, terminated, _ = core.step(np.zeros(n, dtype=np.int64))
        alive &= terminated == 0
    (highest,) = survival.at(cell, x)[1]
    assert alive.mean() <= highest + 4.0 * np.sqrt(0.25 / n)


def test_worlds_are_in_the_states_asked_for() -> None:
    params = full(food=3, food_regrowth=0.5, slip=0.5)
    exact = ExactViability(params, 7, levels=(5, 5, 5))
    cell, x = states(50, 16, 0)
    present = np.random.default_rng(1).uniform(size=(50, 3)) < 0.5
    snapshot = exact.worlds(cell, x, present, seed=3)
    np.testing.assert_array_equal(snapshot.cell, cell)
    np.testing.assert_array_equal(snapshot.internal, x)
    np.testing.assert_array_equal(snapshot.due == 0, present)
    np.testing.assert_array_equal(snapshot.layout_seed, 7)
    assert snapshot.alive.all()
    assert len(np.unique(snapshot.streams[:, 0])) == 50
    again = exact.worlds(cell, x, present, seed=3)
    np.testing.assert_array_equal(snapshot.due, again.due)
    np.testing.assert_array_equal(snapshot.next_slip, again.next_slip)


def test_outside_the_viability_set_nothing_is_safe() -> None:
    exact = ExactViability(full(), 0)
    cell, x = [0, 0, 0], [[0.19, 0.5, 0.9], [0.7, 0.71, 0.9], [0.7, 0.5, 0.59]]
    assert not np.any(exact.kernel.at(cell, x))
    assert not exact.safe_actions(cell, x).any()


def test_other_limits_are_possible() -> None:
    """With wider limits more is viable; without one on energy, nothing starves."""
    narrow = ExactViability(full(), 1)
    wide = ExactViability(full(), 1, viability=make_viability(["temp in [0.2, 0.8]", "integrity >= 0.6"], SETPOINT))
    cell, x = states(3000, 16, 0)
    in_narrow, in_wide = narrow.contains(cell, x), wide.contains(cell, x)
    assert not (in_narrow & ~in_wide).any()
    assert in_wide.sum() > in_narrow.sum()


@pytest.mark.parametrize(
    ("changes", "keywords", "message"),
    [
        ({"size": 10}, {"levels": (401, 40, 201)}, "states, more than 20,000,000: make the grid smaller"),
        ({}, {"levels": (1, 40, 21)}, "must be at least 2"),
        ({}, {"horizon": 0}, "horizon=0 must be at least 1"),
        ({}, {"viability": make_viability(["energy in [0.2, 0.9]"], SETPOINT)}, "energy has the upper limit 0.9"),
    ],
)
def test_what_it_refuses(changes: dict[str, Any], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExactViability(full(**changes), 0, **keywords)


@pytest.mark.parametrize(
    ("cell", "x", "present", "message"),
    [
        ([0, 1], [SETPOINT], None, "must have the shapes"),
        ([0], [SETPOINT], [[True, True]], "must have the shapes"),
        ([16], [SETPOINT], None, "the tiles of a grid of size 4 are 0 ... 15"),
    ],
)
def test_states_that_there_are_not(cell: Any, x: Any, present: Any, message: str) -> None:
    exact = ExactViability(full(), 0, levels=(3, 3, 3))
    with pytest.raises(ValueError, match=message):
        exact.contains(cell, x, present)
