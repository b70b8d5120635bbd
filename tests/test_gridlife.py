"""GridLife as an environment: what it declares, what can be changed from outside, and what it refuses."""

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.viability import ViabilitySet


def test_it_declares_its_internal_variables() -> None:
    env = gym.make("GridLife-v0")
    declared = {name: env.get_wrapper_attr(name) for name in ("internal_names", "setpoint", "weights", "viability")}
    assert declared["internal_names"] == ("energy", "temp", "integrity")
    assert declared["setpoint"] == (0.7, 0.5, 0.9)
    assert declared["weights"] == (1.0, 0.5, 1.5)
    assert isinstance(declared["viability"], ViabilitySet)
    assert declared["viability"].names == ("energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6")


@pytest.mark.parametrize(("flat", "paths"), [(False, "obs.internal[{}]"), (True, "obs[{}]")])
def test_entries_lead_to_the_variables(flat: bool, paths: str) -> None:
    env = GridLifeEnv(flat=flat)
    observation, info = env.reset(seed=0)
    first = 125 if flat else 0
    assert env.internal_entries == {
        name: paths.format(first + j) for j, name in enumerate(("energy", "temp", "integrity"))
    }
    shown = observation[first : first + 3] if flat else observation["internal"]
    np.testing.assert_array_equal(shown, info["internal"].astype(np.float32))


def test_infos_hold_the_variables_and_the_cost() -> None:
    env = GridLifeEnv()
    _, info = env.reset(seed=0)
    assert set(info) == {"internal", "position", "layout_seed"}
    kept = info["internal"].copy()
    _, _, _, _, info_2 = env.step(0)
    assert set(info_2) == {"internal", "position", "cost"}
    assert divmod(int(env.snapshot().cell), env.params.size) == tuple(info_2["position"])
    assert info_2["internal"].dtype == np.float64
    assert info_2["internal"].shape == (3,)
    np.testing.assert_array_equal(info["internal"], kept)
    np.testing.assert_array_equal(info_2["internal"], env.get_internal())


def test_the_seed_decides_everything() -> None:
    def run(seed: int) -> list[Any]:
        env = GridLifeEnv(flat=True)
        env.reset(seed=seed)
        seen: list[Any] = []
        for action in np.random.default_rng(0).integers(0, 5, 300):
            observation, reward, dead, late, _ = env.step(action)
            seen += [observation.tobytes(), reward]
            if dead or late:
                seen.append(env.reset()[0].tobytes())
        return seen

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert GridLifeEnv().reset()[1]["layout_seed"] != GridLifeEnv().reset()[1]["layout_seed"]


def test_constraints_can_be_changed() -> None:
    env = GridLifeEnv()
    env.reset(seed=0)
    env.set_constraints(["energy >= 0.65"])
    lives = next(k for k in itertools.count(1) if env.step(0)[2])
    assert lives <= 11
    assert env.viability.names == ("energy >= 0.65",)
    with pytest.raises(ValueError, match=r"'energy \+ temp >= 1' is not one"):
        env.set_constraints(["energy + temp >= 1"])
    with pytest.raises(ValueError, match="did you mean 'energy'"):
        env.set_constraints(["enrgy >= 0.2"])


def test_tolerance_widens_and_narrows_about_the_setpoint() -> None:
    env = GridLifeEnv()
    env.reset(seed=0)
    for k in (2.0, 4.0, 0.5, 1.0):
        env.set_tolerance(k)
        low, high = env.viability.box()
        np.testing.assert_allclose(low, np.maximum([0.7 - 0.5 / k, 0.5 - 0.2 / k, 0.9 - 0.3 / k], 0.0))
        assert high[1] == pytest.approx(0.5 + 0.2 / k)
    env.set_tolerance(25.0)
    assert env.step(0)[2] != bool(env.viability.contains(env.get_internal()[None])[0])
    with pytest.raises(ValueError, match="positive"):
        env.set_tolerance(0.0)


@pytest.mark.parametrize("flat", [False, True])
def test_hidden_variables_read_zero(flat: bool) -> None:
    env = GridLifeEnv(flat=flat)
    env.reset(seed=0)
    env.set_hidden(["temp"])
    observation, *_, info = env.step(0)
    shown = observation[125:128] if flat else observation["internal"]
    np.testing.assert_array_equal(shown, (info["internal"] * [1, 0, 1]).astype(np.float32))
    assert "temp" not in env.internal_entries
    env.set_hidden([])
    observation, *_, info = env.step(0)
    shown = observation[125:128] if flat else observation["internal"]
    np.testing.assert_array_equal(shown, info["internal"].astype(np.float32))
    with pytest.raises(ValueError, match=r"unknown internal variable 'tmp' \(did you mean 'temp'\?\)"):
        env.set_hidden(["tmp"])
    with pytest.raises(TypeError, match=r"use \['temp'\]"):
        env.set_hidden("temp")


def test_masks_are_false_where_the_grid_ends() -> None:
    env = GridLifeEnv(slip=0.0, constraints=["energy >= 1e-9"])
    env.reset(seed=0)
    generator = np.random.default_rng(0)
    blocked = 0
    for _ in range(60):
        mask, before = env.action_masks(), env.snapshot()
        assert mask.shape == (5,)
        assert mask.dtype == bool
        for action in range(1, 5):
            env.restore(before)
            env.step(action)
            assert mask[action] == (env.snapshot().cell != before.cell)
        blocked += not mask.all()
        assert mask[0]
        env.restore(before)
        env.step(generator.choice(np.flatnonzero(mask)))
    assert blocked
    with pytest.raises(TypeError, match="continuous form of GridLife has no action masks"):
        GridLifeEnv(continuous=True).action_masks()


def test_stepping_needs_a_reset() -> None:
    env = gym.make("GridLife-v0", horizon=1)
    for call in (
        lambda: env.step(0),
        *(env.get_wrapper_attr(name) for name in ("get_internal", "snapshot", "picture")),
    ):
        with pytest.raises(ResetNeeded, match=r"call reset\(\) first: this environment was never reset"):
            call()
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(ResetNeeded, match="the episode ended"):
        env.step(0)
    env.reset()
    env.step(0)


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (5, ValueError),
        (-1, ValueError),
        (np.int64(17), ValueError),
        (1.5, TypeError),
        (float("nan"), TypeError),
        ("up", TypeError),
        (np.array([1]), TypeError),
        (None, TypeError),
    ],
)
def test_a_bad_action_is_refused(action: Any, error: type[Exception]) -> None:
    env = GridLifeEnv()
    env.reset(seed=0)
    before = env.get_internal()
    with pytest.raises(error, match=r"a GridLife action must be .*0 \.\.\. 4"):
        env.step(action)
    np.testing.assert_array_equal(env.get_internal(), before)
    env.step(np.array(1))  # as a policy's predict() gives it


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ([0.0, np.nan], ValueError),
        ([np.inf, 0.0], ValueError),
        ([1.1, 0.0], ValueError),
        ([0.0], TypeError),
        ([[0.0, 0.0]], TypeError),
        (["a", "b"], TypeError),
        (3, TypeError),
    ],
)
def test_a_bad_continuous_action_is_refused(action: Any, error: type[Exception]) -> None:
    env = GridLifeEnv(continuous=True)
    env.reset(seed=0)
    with pytest.raises(error, match=r"a GridLife action must be .*\[-1, 1\]"):
        env.step(action if isinstance(action, int) else np.array(action))
