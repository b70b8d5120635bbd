"""Scalar, NumPy and compiled GridLife are one world: the same seed and actions give the same trajectory, bit by bit."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persist_sb3.envs.batch import Backend, GridLifeCore
from persist_sb3.envs.dynamics import GridLifeParams
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.snapshot import Snapshot

BACKENDS: tuple[Backend, ...] = ("numpy", "numba")

share = st.floats(0.0, 1.0)


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(1, 7))
    tiles = size**2 - 1
    year, spell_every = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    hazards = draw(st.integers(0, tiles))
    food = draw(st.integers(0, tiles - hazards))
    return {
        "size": size,
        "radius": draw(st.integers(0, 3)),
        "horizon": draw(st.integers(1, 40)),
        "hazards": hazards,
        "food": food,
        "items": draw(st.integers(0, min(tiles - hazards - food, 8))),
        "ringed_food": draw(st.integers(0, min(food, 3))),
        "ring_hazards": draw(st.integers(0, 8)),
        "hot_spots": draw(st.integers(0, 4)),
        "cold_spots": draw(st.integers(0, 4)),
        "spot_sigma": draw(st.floats(0.1, 3.0)),
        "spot_distance": draw(st.floats(0.0, 8.0)),
        "slip": draw(share),
        "food_regrowth": draw(share),
        "item_regrowth": draw(share),
        "food_energy": draw(share),
        "energy_decay": draw(st.floats(0.0, 0.05)),
        "energy_drift": draw(st.floats(0.0, 0.002)),
        "temp_rate": draw(share),
        "insulation": draw(st.floats(0.0, 3.0)),
        "climate": draw(share),
        "year": year,
        "spell_every": spell_every,
        "spell_length": draw(st.integers(0, spell_every)),
        "season": draw(st.none() | st.integers(0, year - 1)),
        "comfort": draw(st.floats(0.0, 0.5)),
        "harsh": draw(st.floats(0.0, 0.5)),
        "task": draw(st.sampled_from(["items", "explore"])),
    }


@given(worlds(), st.integers(0, 2**64 - 1), st.booleans(), st.integers(1, 3))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_the_three_implementations_agree(world: dict[str, Any], seed: int, scent: bool, n: int) -> None:
    envs = [GridLifeEnv(flat=True, scent=scent, **world) for _ in range(n)]
    cores = [GridLifeCore(n, GridLifeParams(**world), backend=backend, scent=scent) for backend in BACKENDS]
    first = [env.reset(seed=seed + i) for i, env in enumerate(envs)]
    for core in cores:
        core.seed([seed + i for i in range(n)])
        core.begin()
        assert np.array_equal(core.observations, [observation for observation, _ in first])
        assert core.layout_seeds.tolist() == [info["layout_seed"] for _, info in first]
    generator = np.random.default_rng(seed)
    for _ in range(50):
        actions = generator.integers(0, 5, n)
        outcomes = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        observations, rewards, dead, late, infos = (list(part) for part in zip(*outcomes, strict=True))
        ended = np.array(dead) | np.array(late)
        shown = np.array(observations)
        for i in np.flatnonzero(ended):
            shown[i], _ = envs[i].reset()
        for core in cores:
            now, paid, terminated, truncated = core.step(actions)
            assert np.array_equal(paid, rewards)
            assert np.array_equal(terminated, dead)
            assert np.array_equal(truncated, late)
            assert np.array_equal(core.final_internal, [info["internal"] for info in infos])
            assert np.array_equal(core.final_observations[ended], np.array(observations)[ended])
            assert np.array_equal(now, shown)
    for core in cores:
        assert all(same(core.snapshot()[i], env.snapshot()) for i, env in enumerate(envs))


def same(one: Snapshot, other: Snapshot) -> bool:
    return one.params == other.params and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one) if name != "params"
    )


def trajectory(env: GridLifeEnv, actions: np.ndarray) -> list[Any]:
    seen: list[Any] = []
    for action in actions:
        observation, reward, dead, late, info = env.step(action)
        seen += [observation.tobytes(), reward, dead, late, info["internal"].tobytes()]
        if dead or late:
            observation, info = env.reset()
            seen += [observation.tobytes(), info["layout_seed"]]
    return seen


@given(st.integers(0, 2**32), st.integers(0, 60))
@settings(deadline=None, max_examples=25)
def test_a_restored_world_repeats_itself(seed: int, before: int) -> None:
    env = GridLifeEnv(flat=True, scent=True, horizon=45, food_regrowth=0.3)
    generator = np.random.default_rng(seed)
    env.reset(seed=seed)
    trajectory(env, generator.integers(0, 5, before))
    snapshot = pickle.loads(pickle.dumps(env.snapshot()))
    actions = generator.integers(0, 5, 120)
    once = trajectory(env, actions)
    assert same(snapshot, pickle.loads(pickle.dumps(snapshot)))
    env.restore(snapshot)
    assert trajectory(env, actions) == once
    other = GridLifeEnv(flat=True, scent=True, horizon=45, food_regrowth=0.3)
    other.restore(snapshot)
    assert trajectory(other, actions) == once


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_world_goes_on_in_a_batch(backend: Backend) -> None:
    env = GridLifeEnv(flat=True)
    env.reset(seed=4)
    for action in (1, 2, 3):
        env.step(action)
    core = GridLifeCore(3, backend=backend)
    core.begin()
    core.restore(env.snapshot(), np.array([0, 2]))
    assert np.array_equal(core.observations[0], core.observations[2])
    assert not np.array_equal(core.observations[0], core.observations[1])
    for action in (4, 0, 1, 1):
        observation, *_ = env.step(action)
        observations, *_ = core.step(np.full(3, action))
        assert np.array_equal(observations[[0, 2]], [observation, observation])
    env.restore(core.snapshot()[2])
    assert np.array_equal(env.step(2)[0], core.step(np.full(3, 2))[0][2])


def test_a_snapshot_does_not_follow_the_world() -> None:
    env = GridLifeEnv()
    env.reset(seed=0)
    snapshot = env.snapshot()
    copy = pickle.loads(pickle.dumps(snapshot))
    for _ in range(8):
        env.step(1)
    assert same(snapshot, copy)
    core = GridLifeCore(2, backend="numpy")
    core.begin()
    many = core.snapshot()
    copies = pickle.loads(pickle.dumps(many))
    core.step(np.array([1, 2]))
    assert same(many, copies)
    assert len(many) == 2


def test_a_snapshot_of_another_world_is_refused() -> None:
    env, other = GridLifeEnv(), GridLifeEnv(slip=0.1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"slip=0\.02.*this one has.*slip=0\.1"):
        other.restore(env.snapshot())
    core = GridLifeCore(2, backend="numpy")
    core.begin()
    with pytest.raises(ValueError, match=r"of 2 worlds: restore one of them, snapshot\[i\]"):
        env.restore(core.snapshot())


@pytest.mark.parametrize("backend", BACKENDS)
def test_redrawn_chance_is_independent_and_lawful(backend: Backend) -> None:
    n, p = 4000, 0.25
    params = GridLifeParams(slip=p, food_regrowth=0.5)
    env = GridLifeEnv(slip=p, food_regrowth=0.5)
    env.reset(seed=1)
    core = GridLifeCore(n, params, backend=backend)
    core.restore(env.snapshot())
    core.redraw_chance(range(n))
    waits = core.snapshot().next_slip - core.snapshot().step
    assert np.mean(waits == 1) == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))
    assert np.mean(waits) == pytest.approx(1 / p, abs=4 * np.sqrt(1 - p) / p / np.sqrt(n))
    assert (core.snapshot().due == 0).all()
    assert np.array_equal(core.layout_seeds, np.full(n, env.snapshot().layout_seed))
    assert (core.snapshot().streams[:, 1] == env.snapshot().streams[1]).all()


def test_without_same_step_the_next_step_begins_the_episode() -> None:
    core = GridLifeCore(1, GridLifeParams(horizon=2), backend="numpy", same_step=False)
    core.seed([3])
    core.begin()
    first = int(core.layout_seeds[0])
    core.step(np.array([0]))
    _, _, _, late = core.step(np.array([0]))
    assert late.tolist() == [1]
    assert core.layout_seeds[0] == first
    _, reward, dead, late = core.step(np.array([4]))
    assert (reward[0], dead[0], late[0], core.elapsed[0]) == (0.0, 0, 0, 0)
    assert core.layout_seeds[0] != first


def test_compiled_constants_are_the_current_ones() -> None:
    from persist_sb3.envs import compiled, dynamics, layout
    from persist_sb3.envs import worlds as w

    assert (
        *(len(dynamics.ACTIONS), layout.AROUND, dynamics.RESERVES),
        *(dynamics.SEES_FOOD, dynamics.SEES_ITEM, dynamics.SEES_HAZARD, dynamics.SEES_HEAT, w.FIXED_INTS),
        *(w.CELL, w.STEP, w.NEXT_SLIP, w.NEXT_EVENT, w.LAYOUT_SEED, w.CHANCE, w.LAYOUTS, w.TERMINATED, w.TRUNCATED),
        w.REACHED,
        *(w.EMPTY, w.HAZARD, w.FIRST_SLOT),
        *(w.INTERNAL, w.TOTAL, w.REWARD, w.FINAL, w.LOW, w.HIGH, w.SETPOINT, w.SPREAD, w.SHOWN),
    ) == compiled.COMPILED_IN


def test_numba_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import sys

    real = builtins.__import__

    def without_numba(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "numba":
            raise ModuleNotFoundError("No module named 'numba'", name="numba")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "persist_sb3.envs.compiled", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_numba)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'persist-sb3\[numba\]'"):
        GridLifeCore(1, backend="numba")
    monkeypatch.setattr("persist_sb3.envs.batch.find_spec", lambda name: None)
    assert GridLifeCore(1, backend="auto").num_envs == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_core_refuses_what_it_cannot_do(backend: Backend) -> None:
    from gymnasium.error import ResetNeeded

    core = GridLifeCore(3, backend=backend)
    with pytest.raises(ResetNeeded, match=r"worlds \[0 1 2\] were never reset"):
        core.step(np.zeros(3, dtype=int))
    core.begin(np.array([0, 2]))
    with pytest.raises(ResetNeeded, match=r"worlds \[1\] were never reset"):
        core.step(np.zeros(3, dtype=int))
    core.begin()
    before = core.snapshot()
    with pytest.raises(ValueError, match=r"in world 2 it is 5"):
        core.step(np.array([0, 1, 5]))
    with pytest.raises(ValueError, match=r"in world 0 it is -1"):
        core.step(np.array([-1, 1, 5]))
    with pytest.raises(TypeError, match="must be 3 integers"):
        core.step(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be 3 integers"):
        core.step(np.zeros(4, dtype=int))
    assert same(before, core.snapshot())
    with pytest.raises(ValueError, match="'auto', 'numba' or 'numpy', not 'gpu'"):
        GridLifeCore(1, backend="gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        GridLifeCore(0)
