"""A shield that guards some constraints, and leaves the others to the policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3 import PersistConfig
from persist_sb3.callbacks import CalibrationCallback, InternalModelCallback, ViabilityCallback, WorldModelCallback
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import ActionShield, InternalState, VecActionShield, VecInternalState
from tests.toys import Walker

LIMITS: dict[str, Any] = {
    "dims": ["battery", "heat"],
    "constraints": ["battery >= 0.2", "heat in [0.3, 0.7]", "battery + heat >= 0.6"],
    "mu": [0.8, 0.5],
    "low": [-1.0, -1.0],
    "high": [2.0, 2.0],
}


def test_constraints_about_some_variables_have_the_margins_that_they_had() -> None:
    whole = ViabilitySet(LIMITS["constraints"], LIMITS["dims"], mu=LIMITS["mu"], low=LIMITS["low"], high=LIMITS["high"])
    x = np.random.default_rng(0).uniform(-1.0, 2.0, (50, 2))
    for names, columns in ((["battery"], [0, 2]), (["heat"], [1, 2]), (["battery", "heat"], [0, 1, 2])):
        part = whole.about(names)
        assert part.names == tuple(whole.names[i] for i in columns)
        assert part.dims == whole.dims
        np.testing.assert_array_equal(part.margins(x), whole.margins(x)[:, columns])
        np.testing.assert_array_equal(part.tighten(1.5).margins(x), whole.tighten(1.5).margins(x)[:, columns])
        np.testing.assert_array_equal(part.contains(x), (whole.margins(x)[:, columns] >= 0.0).all(axis=1))
    with pytest.raises(ValueError, match=r"'heet'.*did you mean 'heat'"):
        whole.about(["heet"])
    alone = ViabilitySet(["battery >= 0.2"], LIMITS["dims"])
    with pytest.raises(ValueError, match=r"no constraint is about \['heat'\]"):
        alone.about(["heat"])


def what_happens(observation: Any, x: NDArray[Any], action: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
    """Action 1 empties the battery, and action 2 heats."""
    harm = np.eye(3)[action.astype(int)][:, 1:]
    return observation, x + harm * [-2.0, 2.0]


@pytest.mark.parametrize(("guards", "refused"), [(None, {1: 0, 2: 1}), (["battery"], {1: 0}), (["heat"], {2: 1})])
def test_what_is_not_guarded_passes(guards: list[str] | None, refused: dict[int, int]) -> None:
    limits = {**LIMITS, "constraints": LIMITS["constraints"][:2]}
    env = ActionShield(
        InternalState(Walker(), **limits),
        guards=guards,
        mode="search",
        dynamics=what_happens,
        backup=lambda observation, x: np.zeros(len(x), dtype=int),
        horizon=2,
        rollouts=1,
    )
    for action in range(3):
        env.reset(seed=0)
        *_, info = env.step(action)
        assert info["intervened"] == (action in refused)
        if action in refused:
            # Numbered among all constraints, guarded or not.
            assert info["shield"]["constraint"] == refused[action]


def make_venv(**kwargs: Any) -> VecActionShield:
    return VecActionShield(VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS), min_updates=1, **kwargs)


def test_the_critic_is_about_what_is_guarded_and_comes_out_of_the_zip(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", make_venv(guards=["battery"]), n_steps=32, batch_size=64, n_epochs=1, device="cpu", seed=0)
    critic = ViabilityCallback(learning_starts=16)
    model.learn(128, callback=critic)
    assert critic.spec.viability.names == ("battery >= 0.2", "battery + heat >= 0.6")
    assert critic.actor.heads == 3
    model.save(tmp_path / "model.zip")
    PPO.load(tmp_path / "model.zip", device="cpu")
    again, other = make_venv(guards=["battery"]), make_venv()
    again.reset()
    again.step(np.array([0, 0]))
    other.reset()
    with pytest.raises(Exception, match="constraints"):
        other.step(np.array([0, 0]))


def test_models_of_the_search_know_all_constraints_and_the_calibration_those_that_are_guarded() -> None:
    venv = make_venv(guards=["heat"], mode="verify", horizon=2, rollouts=2)
    small: dict[str, Any] = {"net_arch": [8], "learning_starts": 8}
    internal, world, critic = InternalModelCallback(**small), WorldModelCallback(**small), ViabilityCallback(**small)
    calibration = CalibrationCallback()
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=64, n_epochs=1, device="cpu", seed=0)
    model.learn(128, callback=[critic, internal, world, calibration])
    assert len(internal.spec.viability.names) == len(world.spec.viability.names) == 3
    guarded = tuple(LIMITS["constraints"][1:])
    assert critic.spec.viability.names == calibration.spec.viability.names == guarded


def test_bad_guards_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"guards='heat' must be a list"):
        make_venv(guards="heat")
    with pytest.raises(ValueError, match=r"guards=\[\] must be a list.*at least one"):
        make_venv(guards=[])
    with pytest.raises(RuntimeError, match=r"ActionShield: .*'heet'.*did you mean 'heat'"):
        make_venv(guards=["heet"])


def test_a_configuration_names_them() -> None:
    config = PersistConfig.model_validate({"viability": {"shield": {"guards": ["temp", "integrity"]}}})
    assert dict(config.layers())["ActionShield"]["guards"] == ["temp", "integrity"]
    assert "guards" not in dict(PersistConfig.model_validate({"viability": {"shield": {}}}).layers())["ActionShield"]
