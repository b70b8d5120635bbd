"""InternalState: what it publishes, and what it refuses."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.wrappers import InternalState, VecInternalState, VectorInternalState
from persist_sb3.wrappers.internal_state import NonFiniteError
from tests.toys import Scripted, Walker

FORMS: dict[str, Any] = {
    "gym": lambda env, **kwargs: InternalState(env, **kwargs),
    "sb3": lambda env, **kwargs: VecInternalState(DummyVecEnv([lambda: env]), **kwargs),
    "vector": lambda env, **kwargs: VectorInternalState(SyncVectorEnv([lambda: env]), **kwargs),
}
LIMITS = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2", "heat <= 0.8"], "mu": [0.7, 0.5]}


def test_publishes_state_cost_and_margin() -> None:
    rows = [[0.7, 0.5], [0.45, 0.65], [0.1, 0.5], [0.7, 0.9]]
    env = InternalState(Scripted(rows, reward=2.0), **LIMITS)
    _, info = env.reset()
    np.testing.assert_allclose(info["internal"], rows[0])
    # Scaled by the margins at the setpoint: (battery - 0.2) / 0.5 and (0.8 - heat) / 0.3.
    for row, margin in zip(rows[1:], [0.5, -0.2, -1 / 3], strict=True):
        _, reward, _, _, info = env.step(0)
        assert reward == 2.0
        np.testing.assert_allclose(info["internal"], row, rtol=1e-6)
        assert info["persist"]["margin"] == pytest.approx(margin, abs=1e-6)
        assert info["cost"] == float(margin < 0.0)
        assert info["reward_terms"] == {"task": 2.0}


def test_sources_read_observations_infos_and_simulate() -> None:
    env = InternalState(
        Walker("dict"),
        dims=["battery", "warmth", "fuel"],
        sources={
            "battery": "info.battery",
            "warmth": "obs.sight[0][1]",
            "fuel": {"initial": 1.0, "drain": 0.1, "action_cost": [0.0, 0.2, 0.4]},
        },
        constraints=["battery >= 0.2", "fuel >= 0.1"],
    )
    _, info = env.reset(seed=0)
    assert info["internal"][2] == 1.0
    observation, _, _, _, info = env.step(1)
    assert info["internal"][0] == info["battery"]
    assert info["internal"][1] == observation["sight"][0, 1]
    assert info["internal"][2] == pytest.approx(1.0 - 0.1 - 0.2)
    assert env.internal_entries == {"warmth": "obs.sight[0][1]"}


@pytest.mark.parametrize(
    ("kind", "space", "entries"),
    [
        ("box", spaces.Box, {"battery": "obs[4]", "heat": "obs[5]"}),
        ("dict", spaces.Dict, {"battery": "obs.internal[0]", "heat": "obs.internal[1]"}),
        ("tuple", spaces.Box, {"battery": "obs[5]", "heat": "obs[6]"}),
        ("discrete", spaces.Box, {"battery": "obs[5]", "heat": "obs[6]"}),
    ],
)
def test_append_shows_the_state(kind: str, space: type, entries: dict[str, str]) -> None:
    walker = Walker(kind)
    env = InternalState(walker, **LIMITS, append=True)
    assert isinstance(env.observation_space, space)
    observation, info = env.reset(seed=3)
    for _ in range(4):
        shown = observation["internal"] if kind == "dict" else observation[-2:]
        np.testing.assert_allclose(shown, info["internal"], rtol=1e-6)
        assert env.observation_space.contains(observation)
        observation, _, _, _, info = env.step(1)
    assert env.internal_entries == entries
    if kind == "tuple":
        flat = gym.spaces.flatten(walker.observation_space, walker.observe())
        np.testing.assert_allclose(observation[:-2], np.asarray(flat))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["observation", "internal"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_are_located(form: str, where: str, value: float) -> None:
    rows = np.full((6, 2), 0.5)
    infos = [{"internal": np.array([0.5, 0.5])} for _ in rows]
    if where == "observation":
        rows[3, 1] = value
        expected = r"environment 0 returned observation entry obs\[1\] = (nan|inf) at step 3"
    else:
        infos[3]["internal"][0] = value
        expected = r"environment 0 returned internal variable 'battery' = (nan|inf) at step 3"
    env = FORMS[form](Scripted(rows, infos), **LIMITS)
    env.reset()
    for _ in range(2):
        env.step(0 if form == "gym" else np.array([0]))
    with pytest.raises(NonFiniteError, match=expected):
        env.step(0 if form == "gym" else np.array([0]))


def test_non_finite_observations_pass_if_asked_to() -> None:
    rows = [[0.5, 0.5], [np.nan, 0.5]]
    infos = [{"internal": np.array([0.5, 0.5])}] * 2
    env = InternalState(Scripted(rows, infos), **LIMITS, check_finite=False)
    env.reset()
    assert np.isnan(env.step(0)[0][0])


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_info_key_is_named_at_the_first_reset(form: str) -> None:
    env = FORMS[form](Walker(), dims=["fuel"], sources={"fuel": "info.fuel"}, constraints=["fuel >= 0"])
    with pytest.raises(RuntimeError, match=r"info\['fuel'\] is missing in environment 0.*'battery'"):
        env.reset()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"dims": ["battery"], "mu": [0.5]}, ValueError, "mu=.* describes the constraints"),
        ({"constraints": ["battery >= 0"]}, ValueError, "give dims"),
        ({**LIMITS, "constraints": ["batery >= 0"]}, ValueError, "battery"),
        ({**LIMITS, "mu": [0.1, 0.5]}, ValueError, "battery >= 0.2"),
        ({"dims": ["battery", "heat"]}, RuntimeError, "needs 'viability'"),
        ({**LIMITS, "dims": ["battery"]}, ValueError, "heat"),
    ],
)
def test_wrong_parameters_are_refused_at_construction(kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        InternalState(Walker(), **kwargs)


def test_a_vector_of_another_length_is_refused() -> None:
    env = InternalState(Walker(), dims=["battery"], constraints=["battery >= 0.2"])
    with pytest.raises(RuntimeError, match="2"):
        env.reset()


def test_gridlife_needs_no_parameters() -> None:
    env = InternalState(gym.make("GridLife-v0"))
    assert env.internal_names == ("energy", "temp", "integrity")
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["internal"], env.get_wrapper_attr("get_internal")())
    with pytest.raises(ValueError, match="already shows"):
        InternalState(gym.make("GridLife-v0"), append=True)


def test_ranges_come_from_whoever_knows_them() -> None:
    env = InternalState(
        Walker("dict"),
        dims=["battery", "beat", "fuel", "heat"],
        sources={
            "battery": "info.battery",
            "beat": "obs.beat",
            "fuel": {"initial": 1.0, "low": 0.5, "high": 2.0},
            "heat": "obs.sight[0][1]",
        },
        constraints=["battery >= 0.2"],
    )
    np.testing.assert_array_equal(env.viability.low, [-np.inf, 0.0, 0.5, -10.0])
    np.testing.assert_array_equal(env.viability.high, [np.inf, 2.0, 2.0, 10.0])
    names = ["energy", "temp", "integrity"]
    env = InternalState(gym.make("GridLife-v0"), dims=names, constraints=["energy >= 0.3"])
    np.testing.assert_array_equal(env.viability.high, [1.0, 1.0, 1.0])
    env = InternalState(gym.make("GridLife-v0"), dims=names, constraints=["energy >= 0.3"], high=[2.0, 2.0, 2.0])
    np.testing.assert_array_equal(env.viability.high, [2.0, 2.0, 2.0])
