"""Surprise: a bounded likelihood in no unit, before the model learned the transition, in a unit that keeps its sign."""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from persist_sb3.callbacks import MetricsCallback, PersistCallback, WorldModelCallback, world_model
from persist_sb3.config import PersistConfig
from persist_sb3.intrinsic import BonusUnit, Moves, Surprise, SurpriseUnit
from persist_sb3.models.latent import LatentModel
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.world import WorldModel
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import (
    ActionShield,
    InternalState,
    NonFiniteError,
    PartialObservation,
    SurpriseBonus,
    VecInternalState,
    VecSurpriseBonus,
    VectorInternalState,
    VectorSurpriseBonus,
)
from tests.learners import make_model
from tests.toys import Scripted, Walker

LIMITS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"], "mu": [0.8, 0.5]}
VIABILITY = ViabilitySet(["battery >= 0.2"], ["battery", "heat"], mu=[0.8, 0.5])
SMALL: dict[str, Any] = {"net_arch": [16], "members": 2, "learning_starts": 64, "batch_size": 32, "train_freq": 2}


def make_spec(space: spaces.Space[Any] | int) -> StateSpec:
    if isinstance(space, int):
        space = spaces.Box(-np.inf, np.inf, (space,), dtype=np.float32)
    return StateSpec(space, spaces.Discrete(2), VIABILITY)


def one_answer(space: spaces.Space[Any] | int, outputs: list[float]) -> WorldModel:
    """A model of one member that says the same whatever it is asked; of numbers, how they change."""
    model = WorldModel(make_spec(space), net_arch=[], members=1)
    with torch.no_grad():
        model.ensemble.weights[0].zero_()
        # Behind these lies the gate, which stays open.
        model.ensemble.biases[0][0, 0, : len(outputs)] = torch.tensor(outputs)
    model.updates += 1
    return model


def states(observation: Any) -> np.ndarray:
    rows = np.atleast_2d(np.asarray(observation, dtype=np.float32))
    return np.concatenate([rows, np.full((len(rows), 2), 0.5, np.float32)], axis=1)


LEFT = np.array([[1.0, 0.0]], dtype=np.float32)


def gaussian(error: float, deviation: float) -> float:
    return 0.5 * (error / deviation) ** 2 + math.log(deviation) + 0.5 * math.log(2.0 * math.pi)


# The model's surprise


def test_numbers_by_hand() -> None:
    # The second entry rises by 0.5; deviations 0.8 and 0.5, in units of the entries' own, which is 1.
    model = one_answer(2, [0.0, 0.5, 2 * math.log(0.8), 2 * math.log(0.5)])
    surprise = model.surprise(states([1.0, -1.0]), LEFT, np.array([[1.4, 0.5]], np.float32))
    assert surprise == pytest.approx([(gaussian(0.4, 0.8) + gaussian(1.0, 0.5)) / 2], rel=5e-3)


def test_precision_is_bounded_and_numbers_are_clipped() -> None:
    sure = one_answer(1, [0.0, -30.0])
    # A model that is sure is credited with a tenth of the entry's own deviation, right or wrong.
    assert sure.surprise(states([1.0]), LEFT, states([1.0])[:, :1]) == pytest.approx([gaussian(0.0, 0.1)], rel=1e-3)
    assert sure.surprise(states([0.0]), LEFT, np.array([[1e9]], np.float32)) == pytest.approx(
        [gaussian(5.0, 0.1)], 1e-3
    )
    vague = one_answer(1, [0.0, 30.0])
    assert vague.surprise(states([0.0]), LEFT, np.zeros((1, 1), np.float32)) == pytest.approx(
        [gaussian(0.0, 5.0)], 1e-3
    )


def test_what_never_changed_does_not_outweigh_the_rest() -> None:
    model = one_answer(2, [0.0, 0.0, -30.0, -30.0])
    still = np.zeros((500, 2), np.float32)
    still[:, 1] = np.random.default_rng(0).normal(size=500)
    model.measure(torch.from_numpy(states(still)), torch.from_numpy(LEFT.repeat(500, 0)), torch.from_numpy(still))
    following = np.array([[1.0, 0.0]], np.float32)
    assert model.surprise(states([0.0, 0.0]), LEFT, following) <= gaussian(10.0, 0.1)


@pytest.mark.parametrize(("probability", "expected"), [(0.7, -math.log(0.7)), (1e-9, -math.log(1e-4))])
def test_categories_and_bits_by_hand(probability: float, expected: float) -> None:
    odds = math.log(probability / (1.0 - probability))
    category = one_answer(spaces.Discrete(2), [odds, 0.0])
    happened = np.array([[1.0, 0.0]], np.float32)
    assert category.surprise(states(happened), LEFT, happened) == pytest.approx([expected], rel=1e-3)
    bits = one_answer(spaces.MultiBinary(2), [odds, 0.0])
    # Mean over two entries, of which one is a fair coin.
    both = bits.surprise(states(happened), LEFT, happened)
    assert both == pytest.approx([(expected + math.log(2.0)) / 2], rel=1e-3)


@pytest.mark.parametrize("kind", ["gaussian", "latent"])
def test_is_the_likelihood_of_the_mixture_in_whitened_units(kind: str) -> None:
    torch.manual_seed(0)
    spec = make_spec(6)
    model: Any = WorldModel(spec, [8], members=4) if kind == "gaussian" else LatentModel(spec, 8, 8, 2, 2, samples=4)
    if kind == "gaussian":
        with torch.no_grad():
            model.ensemble.biases[-1][..., -1] = -1.0  # What the regression expects takes place in part.
    deviation = torch.tensor([0.3, 1.0, 7.0, 200.0, 1.0, 2.0])
    seen = torch.randn(4000, 6) * deviation
    state = torch.cat([seen, torch.full((4000, 2), 0.5)], dim=1)
    following = seen + torch.randn(4000, 6) * 0.5 * deviation
    if kind == "latent":
        following = torch.cat([following, torch.rand(4000, 2)], dim=1)
    model.measure(state, torch.eye(2)[torch.arange(4000) % 2], following)
    rows, action = state[:50].numpy(), np.eye(2, dtype=np.float32)[np.arange(50) % 2]
    target = (seen[:50] + torch.randn(50, 6) * 0.5 * deviation).clamp(-3 * deviation, 3 * deviation).numpy()
    own = np.log(np.sqrt(seen.var(dim=0).numpy() + 1e-4)).sum()
    expected = (model.nll(rows, action, target) - own) / 6
    np.testing.assert_allclose(model.surprise(rows, action, target), expected, rtol=1e-3, atol=1e-3)


# The score


@pytest.mark.parametrize(("beta", "seek", "expected"), [(0.0, False, -2.0), (0.0, True, 2.0), (3.0, True, 2.0 - 0.39)])
def test_signs(beta: float, seek: bool, expected: float) -> None:
    # 3 * (0.3 ** 2 + 0.2 ** 2) = 0.39
    score = Surprise(beta, seek).reward(np.array([2.0]), np.array([[0.5, 0.7]]), np.array([0.8, 0.5]))
    assert score == pytest.approx([expected])


class Spy(WorldModel):
    """Is as surprised as the sum of all that it is told, in different places of a number."""

    def surprise(self, state: Any, action: Any, target: Any) -> Any:
        weights = np.array([1.0, 0.1, 10.0, 0.01])
        return state.astype(np.float64) @ weights + 100.0 * action[:, 1] + 1000.0 * target[:, 0]


# Rows (observation of two entries) and internal variables; the last transition ends the episode.
ROWS = [[1.0, 0.0], [2.0, 0.0], [7.0, 0.0]]
INFOS = [{"internal": np.array([x, 0.0])} for x in (0.3, 0.4, 0.5)]
#: o + 10 x + 100 a + 1000 o' with the action 1; the second transition begins where the first led.
TOLD = [1.0 + 3.0 + 100.0 + 2000.0, 2.0 + 4.0 + 100.0 + 7000.0]


def bound(env: Any, unit: float = 0.25) -> Any:
    model, value = Spy(make_spec(2), net_arch=[], members=1), SurpriseUnit()
    model.updates += 1
    value.value.fill_(unit)
    env.bind({"world_model": model, "surprise": value}, training=True)
    return env


def script() -> Scripted:
    return Scripted(ROWS, INFOS, reward=1.0)


def test_it_is_told_the_state_before_the_action_and_the_true_successor() -> None:
    env = bound(SurpriseBonus(InternalState(script(), **LIMITS), weight=2.0, beta=0.0))
    for _ in range(2):
        env.reset()
        for told in TOLD:
            _, reward, _, _, info = env.step(1)
            assert info["persist"]["surprise"] == pytest.approx(told)
            assert info["reward_terms"] == pytest.approx({"task": 1.0, "intrinsic": -2.0 * 0.25 * told})
            assert reward == pytest.approx(1.0 - 2.0 * 0.25 * told)


def test_in_a_vec_env() -> None:
    env = bound(VecSurpriseBonus(VecInternalState(DummyVecEnv([script] * 2), **LIMITS), beta=2.0, seek=True))
    env.reset()
    for told, x in [*zip(TOLD, (0.4, 0.5), strict=True)] * 2:
        _, reward, _, infos = env.step(np.ones(2, dtype=int))
        score = told - 2.0 * ((x - 0.8) ** 2 + 0.25)
        np.testing.assert_allclose(reward, 1.0 + 0.25 * score, rtol=1e-5)
        assert [info["persist"]["surprise_score"] for info in infos] == pytest.approx([score] * 2)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_in_either_autoreset_mode(mode: AutoresetMode) -> None:
    inner = VectorInternalState(SyncVectorEnv([script] * 2, autoreset_mode=mode), **LIMITS)
    env = bound(VectorSurpriseBonus(inner, beta=0.0))
    env.reset()
    between = [0.0] if mode is AutoresetMode.NEXT_STEP else []
    rewards = [env.step(np.ones(2, dtype=int))[1] for _ in [*TOLD, *between] * 2]
    expected = [*(1.0 - 0.25 * told for told in TOLD), *between] * 2
    np.testing.assert_allclose(np.array(rewards), np.array(expected)[:, None].repeat(2, 1), rtol=1e-6)


def test_nothing_before_there_is_a_trained_model_and_a_unit() -> None:
    unbound = SurpriseBonus(InternalState(script(), **LIMITS))
    untrained = SurpriseBonus(InternalState(script(), **LIMITS))
    untrained.bind({"world_model": WorldModel(make_spec(2)), "surprise": SurpriseUnit()}, training=True)
    unmeasured = bound(SurpriseBonus(InternalState(script(), **LIMITS)), unit=0.0)
    for env in (unbound, untrained, unmeasured):
        env.reset()
        _, reward, _, _, info = env.step(1)
        assert reward == 1.0 and info["reward_terms"]["intrinsic"] == 0.0


def test_a_bonus_that_is_not_finite_names_environment_and_step() -> None:
    env = bound(SurpriseBonus(InternalState(script(), **LIMITS), beta=0.0), unit=math.nan)
    env.reset()
    with pytest.raises(NonFiniteError, match=r"SurpriseBonusLayer\) of environment 0 is nan at step 1"):
        env.step(0)


class Camera(Walker):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (8, 8, 3), dtype=np.uint8)


def test_wrong_wiring_is_refused() -> None:
    with pytest.raises(TypeError, match="image"):
        SurpriseBonus(InternalState(Camera(), **LIMITS))
    with pytest.raises(ValueError, match="beta=-1"):
        SurpriseBonus(InternalState(Walker(), **LIMITS), beta=-1.0)
    with pytest.raises(RuntimeError, match="InternalState"):
        SurpriseBonus(Walker())
    aimless = InternalState(Walker(), dims=["battery", "heat"], constraints=["battery >= 0.2"])
    with pytest.raises(RuntimeError, match="needs setpoints"):
        SurpriseBonus(aimless)
    SurpriseBonus(aimless, beta=0.0)
    with pytest.raises(RuntimeError, match="inside ActionShield"):
        SurpriseBonus(ActionShield(InternalState(Walker(), **LIMITS)))
    env = SurpriseBonus(InternalState(Walker(), **LIMITS))
    with pytest.raises(RuntimeError, match=r"Box\[4\], and the policy Box\[2\]: place SurpriseBonus outside"):
        env.bind({"world_model": WorldModel(make_spec(2))}, training=True)


# In training


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit is measured on fewer scores."""
    monkeypatch.setattr(world_model, "ENOUGH", 100)


def make_vec(inner: Any = Walker, n: int = 2, **kwargs: Any) -> VecSurpriseBonus:
    return VecSurpriseBonus(VecInternalState(DummyVecEnv([inner] * n), **LIMITS), **kwargs)


class Judge(PersistCallback):
    """Asks the model itself what it makes of each transition, before or after it learned from it."""

    def __init__(self) -> None:
        super().__init__()
        self.own: list[np.ndarray] = []
        self.published: list[np.ndarray] = []
        self.score: list[np.ndarray] = []
        self.bonus: list[np.ndarray] = []
        self.dones: list[np.ndarray] = []

    def _on_step(self) -> bool:
        step, parts = self.store.read(self.locals), self.state.bundle()
        moves = Moves(step.observation, step.internal, step.executed_action, step.next_observation, step.next_internal)
        infos = [info["persist"] for info in self.locals["infos"]]
        self.bonus.append(step.terms["intrinsic"])
        self.dones.append(step.done)
        if "surprise" in infos[0]:
            self.own.append(Surprise().surprise(parts, moves))
            self.published.append(np.array([info["surprise"] for info in infos]))
        self.score.append(np.array([info.get("surprise_score", np.nan) for info in infos]))
        return True


@pytest.mark.parametrize(("observation", "action"), [("box", "discrete"), ("dict", "box"), ("discrete", "discrete")])
def test_scored_before_the_model_has_learned_it(observation: str, action: str) -> None:
    before, after = Judge(), Judge()
    model = make_model(make_vec(partial(Walker, observation, action)))
    model.learn(320, callback=[before, WorldModelCallback(**SMALL), after])
    np.testing.assert_allclose(before.own, before.published, rtol=1e-6)
    trained = np.abs(np.array(after.own) - np.array(after.published)).max(axis=1) > 1e-6
    # The model learns at every second step.
    assert 0.4 < trained.mean() < 0.6


def test_the_unit_keeps_the_sign_and_changes_between_rollouts_only() -> None:
    judge, callback = Judge(), WorldModelCallback(**SMALL, schedule="lin_0.8", gamma=0.9)
    make_model(make_vec(weight=0.5)).learn(64 * 24, callback=[judge, callback])
    bonus, score = np.array(judge.bonus).reshape(24, 32, 2), np.array(judge.score).reshape(24, 32, 2)
    # Not before 1000 scores: 15 rollouts of 64, of which the first two are the untrained model's.
    paid = np.flatnonzero(np.abs(bonus).max(axis=(1, 2)) > 0.0)
    assert paid[0] in (17, 18) and len(paid) == 24 - paid[0]
    assert np.array(judge.dones).sum() > 10
    sums, total = np.zeros(2), [np.zeros(0)]
    for rollout in range(24):
        if rollout in paid:
            spread = np.concatenate(total).std()
            expected = 0.5 * 0.8 * (1.0 - rollout / 24) / spread
            np.testing.assert_allclose(bonus[rollout], expected * score[rollout], rtol=1e-3)
        for step in score[rollout]:
            if np.isfinite(step).all():
                sums = 0.9 * sums + step
                total.append(sums.copy())


@pytest.mark.usefixtures("soon")
def test_others_can_scale_it() -> None:
    judges = []
    for factor in (1.0, 0.25):
        judge, callback = Judge(), WorldModelCallback(**SMALL)
        # At weight 0 the policy, and so what it meets, is the same under both.
        model = make_model(make_vec(weight=0.0))
        model.learn(320, callback=[judge, callback])
        callback.unit.set_factor(factor)
        model.learn(64, callback=[judge, callback], reset_num_timesteps=False)
        judges.append(float(model.persist.parts["surprise"].value))  # type: ignore[attr-defined]
    assert judges[1] == pytest.approx(0.25 * judges[0])
    with pytest.raises(ValueError, match="factor=-1"):
        BonusUnit().set_factor(-1.0)


def test_without_the_callback_training_does_not_begin() -> None:
    model = make_model(make_vec())
    with pytest.raises(RuntimeError, match=r"add persist_sb3\.callbacks\.WorldModelCallback"):
        model.learn(64, callback=MetricsCallback())
    assert model.num_timesteps <= 2


def parts_of(model: BaseAlgorithm) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in model.persist.parts.items()}  # type: ignore[attr-defined]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else bool(np.all(a == b))


@pytest.mark.usefixtures("soon")
def test_evaluation_changes_nothing() -> None:
    results = []
    for evaluate in (False, True):
        model = make_model(make_vec())
        callbacks: list[BaseCallback] = [WorldModelCallback(**SMALL)]
        if evaluate:
            callbacks.append(EvalCallback(make_vec(n=1), eval_freq=100, n_eval_episodes=2, verbose=0, warn=False))
        model.learn(320, callback=callbacks)
        results.append({**parts_of(model), "policy": dict(model.policy.state_dict())})
    assert same(*results)


@pytest.mark.usefixtures("soon")
def test_it_is_saved_and_resumed(tmp_path: Path) -> None:
    model, callback = make_model(make_vec()), WorldModelCallback(**SMALL)
    model.learn(320, callback=callback)
    callback.unit.set_factor(0.5)
    model.save(tmp_path / "model.zip")
    before = copy.deepcopy(parts_of(model))
    loaded = PPO.load(tmp_path / "model.zip", env=make_vec(), device="cpu")
    resumed, judge = WorldModelCallback(**SMALL), Judge()
    loaded.learn(64, callback=[resumed, judge])
    assert (np.abs(judge.bonus) > 0.0).all()
    spread = callback.unit.scale.std
    np.testing.assert_allclose(np.array(judge.bonus) / np.array(judge.score), 0.5 / spread, rtol=1e-5)
    assert before["surprise"]["value"] == pytest.approx(1.0 / spread, rel=0.2)


def make_wrapped() -> gym.Env[Any, Any]:
    return SurpriseBonus(InternalState(Walker(), **LIMITS))


@pytest.mark.usefixtures("soon")
def test_in_worker_processes_it_is_the_same() -> None:
    bonuses, policies = [], []
    for kind in (DummyVecEnv, SubprocVecEnv):
        env = kind([make_wrapped])
        model, judge = make_model(env), Judge()
        model.learn(320, callback=[WorldModelCallback(**SMALL), judge])
        env.close()
        bonuses.append(np.array(judge.bonus))
        policies.append(dict(model.policy.state_dict()))
    assert (bonuses[0][-20:] != 0.0).all()
    np.testing.assert_array_equal(bonuses[0], bonuses[1])
    assert same(*policies)


class Half(gym.Env[Any, Any]):
    """Of eight entries, four are noise and four do what was announced: they swing about."""

    observation_space = spaces.Box(-np.inf, np.inf, (8,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        swing = np.sin(0.3 * self.time + np.arange(4) * np.pi / 4)
        noise = 50.0 + 10.0 * self.np_random.normal(size=4)
        return np.concatenate([noise, swing]).astype(np.float32), {"internal": np.array([0.8, 0.5])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return *self._observe()[:1], 0.0, False, self.time >= 100, {"internal": np.array([0.8, 0.5])}


def test_noise_costs_its_entropy_and_what_is_foreseen_nothing() -> None:
    judge = Judge()
    make_model(make_vec(Half)).learn(2000, callback=[WorldModelCallback(**SMALL | {"learning_rate": 3e-3}), judge])
    # The entropy of a whitened Gaussian is 0.5 log(2 pi e) = 1.42; the least surprise is that of a deviation of 0.1.
    expected = (0.5 * math.log(2.0 * math.pi * math.e) + gaussian(0.0, 0.1)) / 2
    assert np.mean(judge.published[-200:]) == pytest.approx(expected, abs=0.15)


@pytest.mark.usefixtures("soon")
def test_with_a_latent_model() -> None:
    judge = Judge()
    sizes: dict[str, Any] = {"units": 16, "gru_size": 8, "sequence_length": 4}
    callback = WorldModelCallback(kind="latent", learning_starts=64, **sizes)
    make_model(make_vec(weight=0.5)).learn(320, callback=[judge, callback])
    np.testing.assert_allclose(judge.own, judge.published, rtol=1e-6)
    assert (np.abs(judge.bonus[-32:]) > 0.0).all()


@pytest.mark.usefixtures("soon")
def test_off_policy() -> None:
    judge = Judge()
    model = make_model(make_vec(partial(Walker, "dict", "box")), SAC)
    model.learn(320, callback=[WorldModelCallback(**SMALL), MetricsCallback(), judge])
    assert (np.abs(judge.bonus[-32:]) > 0.0).all()


def test_hidden_variables_are_part_of_the_state() -> None:
    env = PartialObservation(
        InternalState(Walker(), **LIMITS, sources={"battery": "obs[0]", "heat": "obs[1]"}), hide=["heat"]
    )
    model = make_model(DummyVecEnv([lambda: SurpriseBonus(env)]))
    judge = Judge()
    model.learn(128, callback=[judge, WorldModelCallback(**SMALL)])
    np.testing.assert_allclose(judge.own, judge.published, rtol=1e-6)


CARTPOLE: dict[str, Any] = {
    "env": {"name": "CartPole-v1"},
    "internal_state": {"dims": ["x", "theta"], "mu": [0, 0], "source": {"x": "obs[0]", "theta": "obs[2]"}},
    "viability": {"constraints": ["abs(x) <= 2.0", "abs(theta) <= 0.15"], "shield": {"mode": "verify"}},
    "rewards": {"intrinsic": "surprise", "lambda_intr": 0.3, "lambda_homeo": 0.1},
}


def test_both_doors_of_the_configuration_have_it() -> None:
    config = PersistConfig.model_validate(CARTPOLE)
    entry = config.zoo_entry()
    # The shield needs the model, too, and one is enough.
    assert entry["callback"].count("persist_sb3.callbacks.WorldModelCallback") == 1
    vec: Any = config.wrap_vec(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    wrapper: Any = get_wrapper_class(entry, "vec_env_wrapper")
    for env in (vec.venv, wrapper(DummyVecEnv([lambda: gym.make("CartPole-v1")])).venv):
        assert isinstance(env, VecSurpriseBonus) and env.layer.weight == 0.3  # type: ignore[attr-defined]
    del CARTPOLE["viability"]["shield"]
    alone = PersistConfig.model_validate(CARTPOLE)
    assert "persist_sb3.callbacks.WorldModelCallback" in alone.zoo_entry()["callback"]
