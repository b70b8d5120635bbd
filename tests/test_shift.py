"""Worlds that are not as they were, and a shield that minds what its models have not seen."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.callbacks import InternalModelCallback, ViabilityCallback
from persist_sb3.envs.batch import GridLifeCore
from persist_sb3.envs.dynamics import GridLifeParams
from persist_sb3.envs.oracle import ExactViability, FullView
from persist_sb3.envs.oracle.model import Foresight
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.models.familiarity import SHARE, Familiarity
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.spec import Floats, StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.recording import play
from persist_sb3.shield import BoxShield, EnumeratedShield
from persist_sb3.shield.caution import MOST, CautiousCritic
from persist_sb3.streams import Streams
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import ActionShield, InternalState, ShieldError, VecActionShield, VecInternalState
from tests.toys import Walker

# Shifted worlds


def test_drift_in_closed_form() -> None:
    drift = 3e-4
    env = gym.make(
        "GridLifeDrift-v0", energy_drift=drift, food=0, ringed_food=0, slip=0.0, constraints=["temp >= 0.001"]
    )
    _, info = env.reset(seed=0)
    start = info["internal"][0]
    for step in range(1, 25):
        *_, info = env.step(0)
        assert info["internal"][0] == pytest.approx(start - 0.01 * step - drift * step * (step + 1) / 2)


def test_the_oracle_foresees_the_drift() -> None:
    params = replace(GridLifeParams(), slip=0.0, energy_drift=1e-3)
    core = GridLifeCore(50, params, same_step=False, backend="numpy")
    core.seed(range(50))
    core.begin()
    for step in range(3):
        core.step(np.full(50, step))
    before = core.snapshot()
    foresight = Foresight(params, before.heat, before.hazard, before.places)
    gone = ((before.due > 0) << np.arange(params.slots)).sum(axis=1)
    future = foresight.step(
        before.cell[:, None], before.internal.T[:, :, None], gone[:, None], before.step[:, None] + 1
    )
    core.step(np.full(50, 4))
    np.testing.assert_array_equal(future.internal[:, :, 4].T, core.snapshot().internal)
    with pytest.raises(ValueError, match="energy_drift"):
        ExactViability(replace(params, size=3, food=0, ringed_food=0, hazards=0, items=0), 0)
    with pytest.raises(ValueError, match="energy_drift"):
        FullView(GridLifeVecEnv(2, energy_drift=1e-3))


def test_sensors_drop_out() -> None:
    envs = gym.make_vec("GridLifeDropout-v0", num_envs=20, vectorization_mode="vector_entry_point", dropout=0.4)
    envs.reset(seed=0)
    zeros = []
    for _ in range(30):
        observation, _, terminated, truncated, info = envs.step(envs.action_space.sample())
        seen = observation["internal"]
        zeros.append(seen == 0.0)
        shown = (seen != 0.0) & ~(terminated | truncated)[:, None]
        np.testing.assert_allclose(seen[shown], info["internal"][shown], rtol=1e-6)
    assert np.mean(zeros) == pytest.approx(0.4, abs=0.04)
    one, _ = gym.make("GridLifeDropout-v0", dropout=1.0).reset(seed=0)
    assert (one["internal"] == 0.0).all() and one["window"].any()


def test_what_is_rare_is_deadly_and_what_is_scarce_is_less() -> None:
    plain, rare, scarce = (gym.make(f"GridLife{name}-v0").get_wrapper_attr("params") for name in ("", "Rare", "Scarce"))
    assert rare.hazards < plain.hazards and rare.hazard_damage > 0.9 - 0.6 > plain.hazard_damage
    assert scarce.food * scarce.food_regrowth < 0.6 * plain.food * plain.food_regrowth


# Familiarity

LIMITS = ViabilitySet(["x >= 0", "y <= 1"], ["x", "y"], mu=[1.0, 0.0])
SPEC = StateSpec(spaces.Box(-1.0, 1.0, (2,), dtype=np.float32), spaces.Discrete(3), LIMITS)
BOX = StateSpec(SPEC.observation_space, spaces.Box(-1.0, 1.0, (1,), dtype=np.float32), LIMITS)


def test_what_is_typical_is_a_running_quantile() -> None:
    familiarity = Familiarity(SPEC)
    rng = np.random.default_rng(0)
    for scale in (5.0, 1.0):
        for _ in range(300):
            familiarity.measure(scale * rng.exponential(size=64).astype(np.float32))
        assert float(familiarity.typical) == pytest.approx(-scale * np.log(1.0 - SHARE), rel=0.08)
    assert int(familiarity.updates) == 2 * 300 * 64
    familiarity.typical.fill_(2.0)
    np.testing.assert_allclose(familiarity.excess(np.array([0.0, 2.0, 3.0, 8.0], dtype=np.float32)), [0, 0, 0.5, 3])


# Caution


class Ensemble:
    """Its members disagree by the absolute first entry of the state, times one more than the first of the action."""

    def disagreement(self, state: Floats, action: Floats) -> Floats:
        return np.abs(state[:, 0]) * (1.0 + action[:, 0])


def cautious(spec: StateSpec, caution: float) -> tuple[ViabilityCritic, CautiousCritic]:
    critic, familiarity = ViabilityCritic(spec, net_arch=[16]), Familiarity(spec)
    familiarity.typical.fill_(0.5)
    return critic, CautiousCritic(critic, Ensemble(), familiarity, caution)  # type: ignore[arg-type]


def expected_rise(state: Floats, action: Floats, caution: float) -> NDArray[Any]:
    ratio = np.abs(state[:, 0]) * (1.0 + action[:, 0]) / 0.5
    return np.minimum(caution * np.maximum(0.0, ratio - 1.0), MOST)


def test_it_is_as_if_the_threshold_rose_where_the_models_disagree() -> None:
    critic, careful = cautious(SPEC, 0.1)
    state = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
    encoded = SPEC.encode_action(SPEC.actions)
    threshold = float(np.median(critic.values(state)[:, :, 0]))
    passes = EnumeratedShield(SPEC, careful, threshold).permitted(state)  # type: ignore[arg-type]
    changed = 0
    for row in range(150):
        rise = expected_rise(np.repeat(state[row : row + 1], 3, axis=0), encoded, 0.1)
        alone = critic.values(state[row : row + 1])[0, :, 0]
        expected = alone >= threshold + rise
        changed += int((expected != (alone >= threshold)).any())
        if expected.any():
            np.testing.assert_array_equal(passes[row], expected)
        else:
            assert passes[row].sum() == 1 and passes[row, (alone - rise).argmax()]
    assert changed > 5
    np.testing.assert_allclose(careful.viability(state), careful.values(state)[:, :, 0].max(axis=1))
    np.testing.assert_array_equal(careful.best_action(state), careful.values(state)[:, :, 0].argmax(axis=1))


def test_box_actions_too() -> None:
    critic, careful = cautious(BOX, 0.1)
    rng = np.random.default_rng(1)
    state = rng.normal(size=(40, 4)).astype(np.float32)
    action = rng.uniform(-1.0, 1.0, (40, 1)).astype(np.float32)
    alone, rise = critic.action_values(state, action)[:, 0], expected_rise(state, action, 0.1)
    threshold = float(np.median(alone))
    shield = BoxShield(BOX, careful, threshold, Streams(40))  # type: ignore[arg-type]
    decision = shield.decide(state, action)
    np.testing.assert_array_equal(~decision.proposed.safe, alone < threshold + rise)
    values, slopes = careful.action_slopes(state, action)
    np.testing.assert_allclose(values, alone - rise, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(slopes, critic.action_slopes(state, action)[1])
    twice = careful.action_values(state, np.stack([action, -action], axis=1))
    np.testing.assert_allclose(twice[:, 0, 0], alone - rise, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(twice[:, 1], careful.action_values(state, -action), rtol=1e-4, atol=1e-5)


DIMS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"]}
SMALL: dict[str, Any] = {"net_arch": [16], "learning_starts": 32, "train_freq": 1}


@pytest.fixture(scope="module")
def trained() -> tuple[PPO, VecActionShield]:
    env = VecActionShield(VecInternalState(DummyVecEnv([Walker] * 4), **DIMS), min_updates=50, caution=0.5)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    callbacks: list[BaseCallback] = [ViabilityCallback(**SMALL), InternalModelCallback(members=3, **SMALL)]
    return model.learn(1024, callback=callbacks), env


def test_an_ensemble_disagrees_about_what_it_has_not_seen(trained: tuple[PPO, VecActionShield]) -> None:
    model, env = trained
    parts = model.persist.parts  # type: ignore[attr-defined]
    ensemble, familiarity = parts["internal_model"], parts["familiarity"]
    assert isinstance(ensemble, InternalModel) and isinstance(familiarity, Familiarity)
    here = env.layer._encoded()
    there = here.copy()
    there[:, [0, 4]] = -6.0  # a battery that no episode has ever had
    action = env.layer.spec.encode_action(np.zeros(len(here), dtype=np.int64))
    inside, outside = (familiarity.excess(ensemble.disagreement(state, action)) for state in (here, there))
    assert np.median(inside) < 0.5 < np.median(outside)
    # Evaluation does not move what is typical.
    before = float(familiarity.typical)
    env.bind(model.persist.bundle(), training=False)  # type: ignore[attr-defined]
    for _, step in zip(range(20), play(model, env, seed=0), strict=False):
        assert len(step) == 4
    assert float(familiarity.typical) == before > 0.0


def test_caution_refuses_more(trained: tuple[PPO, VecActionShield]) -> None:
    model, _ = trained
    bundle = model.persist.bundle()  # type: ignore[attr-defined]
    critic = bundle["viability"]
    refused = {}
    for caution in (0.0, 5.0):
        env = VecActionShield(
            VecInternalState(DummyVecEnv([Walker] * 4), **DIMS), min_updates=50, caution=caution, threshold=0.0
        )
        env.bind(bundle, training=False)
        env.reset()
        state = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
        shield = env.layer._judge()
        assert isinstance(shield, EnumeratedShield)
        shield.threshold = float(np.median(critic.values(state)[:, :, 0]))
        refused[caution] = int((~shield.decide(state, np.zeros(200, dtype=np.int64)).proposed.safe).sum())
    assert refused[5.0] > refused[0.0] > 0


def test_caution_asks_for_the_internal_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persist_sb3.state._last_loaded", None)
    with pytest.raises(ValueError, match="caution=-1"):
        ActionShield(InternalState(Walker(), **DIMS), caution=-1.0)
    env = ActionShield(InternalState(Walker(), **DIMS), caution=0.1)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ShieldError, match="InternalModelCallback"):
        model.learn(8, callback=[ViabilityCallback()])
