"""Calibration: bounds against the binomial distribution, thresholds against the truth, outcomes against brute force."""

import math
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.callbacks import CalibrationCallback, MetricsCallback, ViabilityCallback
from persist_sb3.models.base import rebuild
from persist_sb3.models.spec import StateSpec
from persist_sb3.shield.calibration import EDGES, ERROR, ZERO, Calibration, bins_of, drawn, increasing, lower_bound
from persist_sb3.state import PersistState
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import ShieldError, VecActionShield, VecInternalState
from tests.test_action_shield import bundle, make_gym, make_vec
from tests.toys import Walker

SPEC = StateSpec(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), ViabilitySet(["battery >= 0.2"], ["battery"], mu=[0.8]))


def binomial_tail(successes: int, trials: int, p: float) -> float:
    return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1))


@pytest.mark.parametrize(("successes", "trials"), [(1, 1), (45, 45), (90, 100), (3, 40)])
def test_the_bound_is_where_the_binomial_tail_is_the_error(successes: int, trials: int) -> None:
    (bound,) = lower_bound(np.array([successes]), np.array([trials]), 0.05)
    assert binomial_tail(successes, trials, bound) == pytest.approx(0.05)


def test_bounds_without_successes_or_trials_say_nothing() -> None:
    assert lower_bound(np.array([0, 0]), np.array([0, 7]), 0.1).tolist() == [0.0, 0.0]


def test_increasing_shares() -> None:
    # Pool adjacent violators by hand: bins 1 and 2 (1 of 2, 1 of 6) are merged to 2 of 8.
    made, kept = np.array([0, 2, 6, 0, 4, 0]), np.array([0, 1, 1, 0, 4, 0])
    np.testing.assert_allclose(increasing(made, kept), [0.25, 0.25, 0.25, 0.625, 1.0, 1.0])
    assert np.isnan(increasing(np.zeros(3, int), np.zeros(3, int))).all()


def test_every_decision_of_an_episode_is_as_likely_to_be_drawn() -> None:
    made, kept = np.array([[2, 3, 0, 1]]), np.array([[0, 2, 0, 1]])
    draws = (np.arange(6000) + 0.5) / 6000
    shares = [drawn(made, kept, np.array([draw]))[0] for draw in draws]
    np.testing.assert_allclose(np.mean(shares, axis=0), [3 / 6, 3 / 4, 1.0, 1.0], atol=1e-3)
    assert drawn(np.array([[1, 0]]), np.array([[1, 0]]), np.array([0.5])).tolist() == [[1, -1]]


def truth(value: Any) -> Any:
    """How probably a decision of this value is safe, in the worlds below."""
    return 1.0 / (1.0 + np.exp(-8.0 * (np.asarray(value) + 0.1)))


def episode(generator: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    values = generator.uniform(-0.5, 1.0, generator.integers(1, 20))
    bins, safe = bins_of(values), generator.random(len(values)) < truth(values)
    made, kept = np.zeros(len(EDGES), dtype=np.intp), np.zeros(len(EDGES), dtype=np.intp)
    np.add.at(made, bins, 1)
    np.add.at(kept, bins, safe)
    return made, kept


def realised(threshold: float) -> float:
    values = np.linspace(threshold, 1.0, 10_001)
    return float(truth(values).mean())


def test_a_certified_threshold_keeps_its_word_as_often_as_it_claims() -> None:
    broken = certified = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        calibration = Calibration(SPEC, 0.95, episodes=300, step_size=0.0)
        for _ in range(300):
            calibration.add(*episode(generator), generator.random())
        calibration.fit()
        certified += calibration.certified
        broken += calibration.certified and realised(calibration.threshold) < 0.95
        assert calibration.threshold >= 0.0
    assert certified > 50
    # Of 60 no more than 6 are expected; 13 or more would happen once in 300 times.
    assert broken < 13 and binomial_tail(13, 60, ERROR) < 0.01


def test_p_safe_is_the_share_that_is_safe() -> None:
    generator = np.random.default_rng(0)
    calibration = Calibration(SPEC, 0.9, episodes=4000)
    assert np.isnan(calibration.p_safe(np.array([0.3], dtype=np.float32))).all()
    for _ in range(4000):
        calibration.add(*episode(generator), generator.random())
    calibration.fit()
    middles = (EDGES[:-1] + np.diff(EDGES) / 2).astype(np.float32)
    estimated = calibration.p_safe(middles)
    np.testing.assert_allclose(estimated, truth(middles), atol=0.04)
    assert (np.diff(estimated) >= 0.0).all()
    assert np.isnan(calibration.p_safe(np.array([np.nan], dtype=np.float32))).all()


def test_what_cannot_be_certified_is_called_so() -> None:
    calibration = Calibration(SPEC, 0.99)
    made = np.zeros(len(EDGES), dtype=np.intp)
    made[ZERO + 4] = 1
    calibration.add(made, made, 0.5)
    calibration.fit()
    assert not calibration.certified
    assert calibration.threshold <= EDGES[ZERO + 4]


def test_a_threshold_comes_down_a_step_at_a_time() -> None:
    """What looks safe from above may be so only because nobody went there."""
    calibration = Calibration(SPEC, 0.9, step_size=0.0, episodes=200, start=0.5)
    made = np.zeros(len(EDGES), dtype=np.intp)
    made[-1] = 1
    steps = []
    for _ in range(4):
        for _ in range(100):
            calibration.add(made, made, 0.5)
        calibration.fit()
        steps.append(calibration.threshold)
    np.testing.assert_allclose(steps, [0.45, 0.4, 0.35, 0.3], atol=1e-9)
    assert calibration.certified
    # Below 0.3 most decisions turn out to be wrong: it stays, and goes back up.
    worse = made.copy()
    worse[bins_of(np.array([0.25]))] = 1
    for _ in range(3):
        for _ in range(100):
            calibration.add(worse, worse if calibration.threshold >= 0.3 else made, 0.9)
        calibration.fit()
    assert calibration.threshold >= 0.25
    # An episode that began under a higher threshold is one of that.
    late = Calibration(SPEC, 0.9, step_size=0.0, start=0.2)
    for _ in range(100):
        late.add(made, made, 0.5, force=0.6)
    late.fit()
    assert late.threshold == pytest.approx(0.55)


def test_the_level_follows_the_errors() -> None:
    # Gibbs & Candès, Proposition 4.1: |share of errors - alpha| <= (max(alpha, 1 - alpha) + step) / (step * episodes).
    # It holds for any sequence, if the level says who is passed: here everyone below the level errs.
    generator = np.random.default_rng(0)
    alpha, step, episodes = 0.1, 0.02, 2000
    calibration = Calibration(SPEC, 1.0 - alpha, step_size=step, episodes=10)
    made, errors = np.zeros(len(EDGES), dtype=np.intp), 0
    made[-1] = 1
    for t in range(episodes):
        hardness = generator.random() if t < 1000 else generator.random() ** 0.2  # The world gets harder.
        wrong = hardness > float(calibration.level)
        errors += wrong
        calibration.add(made, made * (not wrong), 0.0)
    assert abs(errors / episodes - alpha) <= (1.0 - alpha + step) / (step * episodes)


class Memory(KVWriter):
    """Keeps the last of everything that is logged."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.values |= key_values

    def close(self) -> None: ...


class Saved:
    """A part of a saved state, as it is."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


class Watch(MetricsCallback):
    """Keeps what each step was, for brute force."""

    def _on_step(self) -> bool:
        step = self.store.read(self.locals)
        calibration = self.model.persist.parts["calibration"]  # type: ignore[attr-defined]
        self.steps: list[Any] = getattr(self, "steps", [])
        self.steps.append((step.internal.copy(), step.next_internal.copy(), step.done.copy()))
        self.calibration = calibration
        return super()._on_step()


def test_outcomes_are_those_of_the_next_steps() -> None:
    horizon, near, n = 3, 0.5, 3
    model = PPO("MlpPolicy", make_vec(), n_steps=50, batch_size=50, n_epochs=1, seed=0, device="cpu")
    watch = Watch()
    calibrate = CalibrationCallback(horizon=horizon, near=near, min_updates=0, episodes=1000)
    model.learn(450, callback=[ViabilityCallback(net_arch=[8]), calibrate, watch])
    viability = ViabilitySet(["battery >= 0.2"], ["battery", "heat"])
    expected = []
    for slot in range(n):
        steps = [(before[slot], after[slot], done[slot]) for before, after, done in watch.steps]
        ends = [t for t, step in enumerate(steps) if step[2]]
        for begin, end in zip([0, *(t + 1 for t in ends)], ends, strict=False):
            made = kept = 0
            for t in range(begin, end + 1):
                if not 0.0 <= viability.margins(steps[t][0][None])[0].min() < near:
                    continue
                future = [viability.margins(steps[k][1][None])[0].min() for k in range(t, min(t + horizon, end + 1))]
                if any(margin < 0.0 for margin in future):
                    made += 1
                elif len(future) == horizon:
                    made, kept = made + 1, kept + 1
            if made:
                expected.append((made, kept))
    calibration = watch.calibration
    rows = int(calibration.count)
    found = list(zip(calibration.made[:rows].sum(1).tolist(), calibration.kept[:rows].sum(1).tolist(), strict=True))
    assert 0 < sum(kept for _, kept in expected) < sum(made for made, _ in expected)
    assert sorted(found) == sorted(expected)


class AllPass(CalibrationCallback):
    """Whatever is decided passes."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.calibration.limit.fill_(-np.inf)


def test_risks_are_the_shares_after_which_each_constraint_broke() -> None:
    horizon, n, limits = 3, 3, {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2", "heat <= 0.53"]}
    walkers = VecInternalState(DummyVecEnv([lambda: Monitor(Walker())] * n), **limits)
    env = VecActionShield(walkers, min_updates=10_000)
    model = PPO("MlpPolicy", env, n_steps=50, batch_size=50, n_epochs=1, seed=0, device="cpu")
    output = Memory()
    model.set_logger(Logger(None, [output]))
    watch = Watch()
    calibrate = AllPass(horizon=horizon, near=10.0, min_updates=0, fit_freq=10_000)
    model.learn(450, callback=[ViabilityCallback(net_arch=[8]), calibrate, watch])
    viability = ViabilitySet(limits["constraints"], limits["dims"])
    passed, broke = 0, np.zeros(2)
    for slot in range(n):
        steps = [(before[slot], after[slot], done[slot]) for before, after, done in watch.steps]
        ends = [t for t, step in enumerate(steps) if step[2]]
        for begin, end in zip([0, *(t + 1 for t in ends)], ends, strict=False):
            for t in range(begin, end + 1):
                if viability.margins(steps[t][0][None]).min() < 0.0:
                    continue
                future = [viability.margins(steps[k][1][None])[0] < 0.0 for k in range(t, min(t + horizon, end + 1))]
                first = next((broken for broken in future if broken.any()), None)
                if first is not None or len(future) == horizon:
                    passed += 1
                    broke += np.zeros(2) if first is None else first
    assert (broke > 0).all() and broke.sum() < passed
    np.testing.assert_allclose(watch.calibration.risk, broke / passed)
    keys = [f"persist/calibration/risk/{name}" for name in viability.names]
    # What was logged last may lack the episodes that ended since.
    assert [output.values[key] for key in keys] == pytest.approx(watch.calibration.risk, abs=0.05)


def test_a_calibration_of_before_risks_were_counted_is_taken() -> None:
    old = Calibration(SPEC, 0.9, episodes=10)
    made = np.zeros(len(EDGES), dtype=np.intp)
    made[-1] = 4
    for _ in range(3):
        old.add(made, made // 2, 0.5)
    old.fit()
    saved = dict(old.state_dict())
    del saved["passed"], saved["broke"]
    state = PersistState()
    state.register("calibration", Saved(saved))
    again = Calibration(SPEC, 0.9, episodes=10)
    resumed = PersistState.from_bytes(state.to_bytes())
    resumed.register("calibration", again)
    for calibration in (again, rebuild(saved, SPEC, Calibration)):
        assert calibration.threshold == old.threshold and int(calibration.count) == 3
        assert np.isnan(calibration.risk).all()
        calibration.add(made, made, 0.5, passed=4, broke=np.array([1]))
        assert calibration.risk.tolist() == [0.25]


def test_what_is_forgotten_is_no_risk() -> None:
    calibration = Calibration(SPEC, 0.9, episodes=2)
    made = np.zeros(len(EDGES), dtype=np.intp)
    made[-1] = 2
    for broke in (2, 1, 0):
        calibration.add(made, made, 0.5, passed=2, broke=np.array([broke]))
    assert calibration.risk.tolist() == [0.25]


def trained(*extra: Any) -> PPO:
    model = PPO("MlpPolicy", make_vec(min_updates=5), n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(288, callback=[ViabilityCallback(net_arch=[8], learning_starts=32), *extra])
    return model


def test_measuring_changes_nothing() -> None:
    plain, measured = trained(), trained(CalibrationCallback(min_updates=5))
    for name, parameter in plain.policy.state_dict().items():
        assert (parameter == measured.policy.state_dict()[name]).all()
    for name in ("critics.weights.0", "updates"):
        one, two = (model.persist.parts["viability"].state_dict()[name] for model in (plain, measured))  # type: ignore[attr-defined]
        assert (one == two).all()


def test_the_shield_takes_its_threshold_and_says_how_sure_it_is() -> None:
    env = make_gym(threshold="calibrated", conf=0.9)
    calibration = Calibration(env.layer.spec, 0.9)
    calibration.limit.fill_(0.45)
    calibration.curve.copy_(calibration.curve.new_tensor(truth(EDGES)))
    env.bind({**bundle(), "calibration": calibration}, training=True)
    _, info = env.reset(seed=0)
    battery = info["internal"][0]
    assert 0.45 < battery - 0.25 < 0.65  # What action 0 is worth; action 1 is worth 0.1 less, action 2 0.2 less.
    assert env.action_masks().tolist() == [battery - 0.25 - 0.1 * action >= 0.45 for action in range(3)]
    *_, info = env.step(2)
    assert info["intervened"]
    told = info["shield"]
    assert told["p_safe"] == pytest.approx(truth(EDGES[told["value"] >= EDGES].max()), abs=1e-6)
    assert told["executed_p_safe"] == pytest.approx(truth(EDGES[told["executed_value"] >= EDGES].max()), abs=1e-6)


def test_a_replay_decides_by_the_threshold_that_was_measured(tmp_path: Any) -> None:
    model = PPO(
        "MlpPolicy", make_vec(threshold="calibrated", conf=0.9, min_updates=5), n_steps=32, batch_size=32, device="cpu"
    )
    model.learn(192, callback=[ViabilityCallback(net_arch=[8], learning_starts=32), CalibrationCallback(min_updates=5)])
    model.persist.parts["calibration"].limit.fill_(0.35)  # type: ignore[attr-defined]
    model.save(tmp_path / "model")
    PPO.load(tmp_path / "model", device="cpu")
    env = make_gym(threshold="calibrated", conf=0.9, min_updates=5)
    env.reset(seed=0)
    env.step(0)
    shield = env.layer._judge()
    assert shield is not None and shield.threshold == 0.35


def test_a_calibrated_shield_needs_its_callback() -> None:
    model = PPO("MlpPolicy", make_vec(threshold="calibrated"), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ShieldError, match="CalibrationCallback"):
        model.learn(24, callback=ViabilityCallback(net_arch=[8]))


def test_the_callback_needs_a_critic_before_it() -> None:
    model = PPO("MlpPolicy", make_vec(), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(RuntimeError, match="ViabilityCallback before it"):
        model.learn(24, callback=[CalibrationCallback(), ViabilityCallback(net_arch=[8])])


@pytest.mark.parametrize("kwargs", [{"conf": 1.0}, {"horizon": 0}, {"near": 0.0}, {"step_size": -1.0}, {"fit_freq": 0}])
def test_wrong_parameters(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        CalibrationCallback(**kwargs)


def test_wrong_thresholds() -> None:
    with pytest.raises(ValueError, match="'calibrated'"):
        make_vec(threshold="safe")
    with pytest.raises(ValueError, match="conf"):
        make_vec(threshold="calibrated", conf=1.0)
