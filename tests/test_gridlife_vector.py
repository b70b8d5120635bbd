"""GridLife's vector environments do what vectors of the single environment do, for SB3 and for gymnasium."""

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from persist_sb3.envs.batch import Backend
from persist_sb3.envs.dynamics import Position
from persist_sb3.envs.gridlife import GridLifeEnv
from persist_sb3.envs.vector import GridLifeVecEnv, GridLifeVectorEnv
from persist_sb3.wrappers import VecInternalState

FORMS: list[dict[str, Any]] = [
    {},
    {"flat": True, "scent": True},
    {"continuous": True, "task": "explore", "items": 0},
]


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Equal values, and equal types of arrays, all the way down."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}/{i}")
    elif isinstance(one, np.ndarray):
        if one.dtype == object and any(isinstance(row, Position) for row in one):
            # gymnasium does not make a column of tuples, and leaves None where nobody reports.
            one = np.array([row or (0, 0) for row in one])
        assert one.dtype == other.dtype, where
        assert one.shape == other.shape, where
        if one.dtype == object:
            assert_equal(list(one), list(other), where)
        else:
            np.testing.assert_array_equal(one, other, where)
    else:
        assert type(one) is type(other), where
        assert one == other, where


def actions_of(space: gym.Space[Any], n: int, steps: int) -> Iterator[np.ndarray]:
    space.seed(0)
    for _ in range(steps):
        yield np.stack([space.sample() for _ in range(n)])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("form", FORMS)
def test_it_equals_sb3s_vector(form: dict[str, Any], backend: Backend) -> None:
    dummy = DummyVecEnv([lambda: GridLifeEnv(**form, horizon=60)] * 3)
    native = GridLifeVecEnv(3, backend=backend, **form, horizon=60)
    for envs in (dummy, native):
        envs.seed(5)
    assert native.observation_space == dummy.observation_space
    assert native.action_space == dummy.action_space
    assert_equal(dummy.reset(), native.reset())
    assert_equal(dummy.reset_infos, native.reset_infos)
    ends = 0
    for actions in actions_of(dummy.action_space, 3, 200):
        theirs, ours = dummy.step(actions), native.step(actions)
        assert_equal(theirs, ours)
        assert_equal(dummy.reset_infos, native.reset_infos)
        ends += int(ours[2].sum())
    assert ends > 5
    for envs in (dummy, native):
        envs.seed(6)
        envs.set_options([{"layout_seed": 7}, {}, {"layout_seed": 2_000_000_001}])
    assert_equal(dummy.reset(), native.reset())
    assert_equal(dummy.reset_infos, native.reset_infos)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("form", FORMS)
def test_it_equals_gymnasiums_vector(form: dict[str, Any], mode: AutoresetMode, backend: Backend) -> None:
    sync = SyncVectorEnv([lambda: GridLifeEnv(**form, horizon=60)] * 3, autoreset_mode=mode)
    native = GridLifeVectorEnv(3, backend=backend, autoreset_mode=mode, **form, horizon=60)
    assert native.metadata["autoreset_mode"] is mode
    assert_equal(sync.reset(seed=9), native.reset(seed=9))
    for actions in actions_of(native.single_action_space, 3, 200):
        assert_equal(sync.step(actions), native.step(actions))
    assert_equal(sync.reset(seed=[1, None, 3]), native.reset(seed=[1, None, 3]))
    mask = np.array([True, False, True])
    options = {"reset_mask": mask, "layout_seed": 3}
    assert_equal(sync.reset(options=dict(options)), native.reset(options=dict(options)))


def test_resets_by_hand() -> None:
    sync = SyncVectorEnv([lambda: GridLifeEnv(horizon=4)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    native = GridLifeVectorEnv(2, autoreset_mode="Disabled", backend="numpy", horizon=4)
    assert_equal(sync.reset(seed=0), native.reset(seed=0))
    sync.step(np.zeros(2, dtype=int))
    native.step(np.zeros(2, dtype=int))
    mask = {"reset_mask": np.array([True, False])}
    assert_equal(sync.reset(options=dict(mask)), native.reset(options=dict(mask)))
    for _ in range(3):
        assert_equal(sync.step(np.zeros(2, dtype=int)), native.step(np.zeros(2, dtype=int)))
    with pytest.raises(ResetNeeded, match=r"environments \[1\] ended"):
        native.step(np.zeros(2, dtype=int))
    mask = {"reset_mask": np.array([False, True])}
    assert_equal(sync.reset(options=dict(mask)), native.reset(options=dict(mask)))
    assert_equal(sync.step(np.zeros(2, dtype=int)), native.step(np.zeros(2, dtype=int)))


def test_layouts_can_be_chosen_one_by_one() -> None:
    envs = GridLifeVectorEnv(3, backend="numpy")
    _, infos = envs.reset(seed=0, options={"layout_seed": np.arange(2_000_000_000, 2_000_000_003)})
    assert infos["layout_seed"].tolist() == [2_000_000_000, 2_000_000_001, 2_000_000_002]
    with pytest.raises(ValueError, match="of 3 environments needs as many seeds"):
        envs.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="of 3 environments needs as many seeds"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(TypeError, match="no option 'layout'"):
        envs.reset(options={"layout": 3})


def test_methods_reach_one_or_all() -> None:
    envs = GridLifeVecEnv(3, backend="numpy")
    envs.seed(0)
    envs.reset()
    assert envs.get_attr("internal_names")[2] == ("energy", "temp", "integrity")
    assert envs.env_is_wrapped(Monitor) == [False] * 3
    assert np.stack(envs.env_method("action_masks")).tolist() == envs.action_masks().tolist()
    np.testing.assert_array_equal(np.stack(envs.env_method("get_internal")), envs.get_internal())

    envs.env_method("set_tolerance", 30.0, indices=[1])
    envs.env_method("set_hidden", ["energy"], indices=2)
    observations, _, dones, _ = envs.step(np.zeros(3, dtype=int))
    assert dones.tolist() == [False, True, False]
    assert isinstance(observations, dict)
    assert observations["internal"][:, 0].astype(bool).tolist() == [True, True, False]
    assert [set(entries) for entries in envs.get_attr("internal_entries")][2] == {"temp", "integrity"}

    envs.set_tolerance(2.0)
    assert [viability.tightness for viability in envs.get_attr("viability")] == [2.0] * 3
    envs.set_constraints(["energy >= 0.5"])
    assert envs.viability.names == ("energy >= 0.5",)
    envs.set_attr("note", "kept", indices=0)
    assert envs.get_attr("note", indices=0) == ["kept"]
    assert not envs.has_attr("note")

    snapshots = envs.env_method("snapshot")
    before = envs.get_internal()
    envs.step(np.ones(3, dtype=int))
    for i, snapshot in enumerate(snapshots):
        envs.env_method("restore", snapshot, indices=i)
    np.testing.assert_array_equal(envs.get_internal(), before)
    whole = envs.snapshot()
    envs.step(np.ones(3, dtype=int))
    envs.restore(whole)
    np.testing.assert_array_equal(envs.get_internal(), before)


def test_batched_methods_of_gymnasiums_form() -> None:
    envs = GridLifeVectorEnv(4, backend="numpy", flat=True)
    with pytest.raises(ResetNeeded):
        envs.get_internal()
    _, infos = envs.reset(seed=0)
    np.testing.assert_array_equal(envs.get_internal(), infos["internal"])
    envs.set_hidden(["temp", "integrity"])
    observations, *_ = envs.step(np.zeros(4, dtype=int))
    assert (observations[:, 126:128] == 0).all()
    assert set(envs.internal_entries) == {"energy"}
    assert envs.action_masks().shape == (4, 5)
    assert envs.setpoint == (0.7, 0.5, 0.9)
    assert envs.weights == (1.0, 0.5, 1.5)


def test_bad_actions_name_the_environment() -> None:
    envs = GridLifeVecEnv(2, backend="numpy")
    envs.reset()
    with pytest.raises(ValueError, match="that of environment 1 is 9"):
        envs.step(np.array([0, 9]))
    continuous = GridLifeVectorEnv(2, backend="numpy", continuous=True)
    continuous.reset()
    with pytest.raises(ValueError, match=r"that of environment 0 is \[nan  0\.\]"):
        continuous.step(np.array([[np.nan, 0.0], [0.0, 0.0]]))
    with pytest.raises(TypeError, match="two numbers"):
        continuous.step(np.zeros(2))


def test_ppo_trains_and_is_evaluated_on_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = VecNormalize(VecMonitor(GridLifeVecEnv(4, flat=True)), norm_obs=False)
        model = PPO("MlpPolicy", envs, n_steps=32, batch_size=64, n_epochs=1, seed=3, device="cpu")
        model.learn(256)
        assert model.ep_info_buffer
        evaluate_policy(model, VecMonitor(GridLifeVecEnv(2, flat=True)), n_eval_episodes=2)


def test_pictures_of_all_worlds() -> None:
    envs = GridLifeVecEnv(2, render_mode="rgb_array", backend="numpy")
    envs.seed(0)
    envs.reset()
    assert envs.get_images()[1].shape == (512, 768, 3)  # type: ignore[union-attr]
    whole = envs.render()
    assert whole is not None
    assert whole.shape == (1024, 768, 3)
    vector = gym.make_vec("GridLife-v0", num_envs=2, render_mode="rgb_array", backend="numpy")
    vector.reset(seed=0)
    frames = vector.render()
    assert frames is not None
    np.testing.assert_array_equal(frames[0], envs.get_images()[0])
    with pytest.raises(ValueError, match="render as 'rgb_array' only, not 'human'"):
        GridLifeVecEnv(2, render_mode="human")


def test_layers_go_around_a_monitor() -> None:
    layered = VecInternalState(VecMonitor(GridLifeVecEnv(2, horizon=3)))
    layered.seed(0)
    layered.reset()
    for step in range(1, 10):
        _, _, dones, infos = layered.step(np.zeros(2, dtype=np.int64))
        assert dones.all() == (step % 3 == 0)
        assert all(
            info["internal"][0] == pytest.approx(layered.layer.x[i, 0]) or dones[i] for i, info in enumerate(infos)
        )
    begun = layered.venv.venv.get_internal()  # type: ignore[attr-defined]
    np.testing.assert_allclose(layered.layer.x, begun)
