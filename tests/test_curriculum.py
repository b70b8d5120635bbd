"""Stages: their trace by hand, what changes with them and where, and that a resume goes on in the same one."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from rl_zoo3.utils import get_callback_list, get_wrapper_class
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from persist_sb3 import PersistConfig
from persist_sb3.callbacks import CurriculumCallback, MetricsCallback, ViabilityCallback
from persist_sb3.curriculum import Curriculum, Demands, Stage, StageInForce, read_stages
from persist_sb3.envs.vector import GridLifeVecEnv
from persist_sb3.homeostat import Homeostat
from persist_sb3.metrics import EpisodeRecord, read_episodes
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.state import PersistState, PersistStateError
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import (
    ActionShield,
    HomeostatReward,
    InternalState,
    RNDBonus,
    VecHomeostatReward,
    VecInternalState,
)
from tests.toys import Scripted, Walker

LIMITS: dict[str, Any] = {
    "dims": ["battery", "heat"],
    "constraints": ["battery >= 0.5", "heat in [0.45, 0.55]"],
    "mu": [0.8, 0.5],
    "low": [-0.5, 0.0],
    "high": [1.0, 1.0],
}


# The logic alone.


def test_stages_go_by_steps_and_by_stability() -> None:
    curriculum = Curriculum(
        [{"steps": 6, "tightness": 0.4}, {"violation_rate": 0.5, "episodes": 2, "tightness": 0.6}, {"steps": 2}],
        num_envs=2,
    )
    no, yes = np.array([False, False]), np.array([True, True])
    trace = []

    def step(violated: Any, done: Any) -> None:
        curriculum.step(np.array(violated), np.array(done))
        curriculum.advance()
        trace.append((curriculum.index, curriculum.steps))

    for _ in range(3):
        step(no, no)
    step(yes, yes)  # of episodes that began in the stage before: they do not count
    step([True, False], no)
    step(no, [True, False])  # violated earlier
    step(no, [True, True])  # two, none violated: half of the last two ... of three, the last two are clean
    step(no, no)
    step(yes, yes)
    assert trace == [(0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (1, 6), (2, 0), (3, 0), (3, 2)]
    assert curriculum.finished and curriculum.demands == Demands()
    assert not curriculum.advance()


def test_a_rate_is_of_whole_episodes_of_the_stage() -> None:
    curriculum = Curriculum([{"violation_rate": 0.0, "episodes": 3}], num_envs=1)
    outcomes = [False, True, False, False, False]
    seen = []
    for violated in outcomes:
        curriculum.step(np.array([violated]), np.array([False]))
        curriculum.step(np.array([False]), np.array([True]))
        seen.append(curriculum.advance())
    assert seen == [False, False, False, False, True]  # the last three are clean for the first time


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "at least one stage"),
        ([{"tightness": 0.5}], "needs an end"),
        ([{"steps": 1, "tightnes": 0.5}], "did you mean 'tightness'"),
        ([{"steps": 0}], "steps=0"),
        ([{"steps": 1, "tightness": 1.1}], "tightness=1.1"),
        ([{"steps": 1, "tightness": 0.0}], "tightness=0.0"),
        ([{"steps": 1, "homeo_factor": 2.0}], "homeo_factor=2.0"),
        ([{"steps": 1, "intr_factor": -1.0}], "intr_factor=-1.0"),
        ([{"steps": 1, "conf": 0.0}], "conf=0.0"),
        ([{"violation_rate": 1.0}], "violation_rate=1.0"),
        ([{"steps": 1, "episodes": 0}], "episodes=0"),
        ([{"steps": 1, "tightness": 0.9}, {"steps": 1, "tightness": 0.8}], "stage 2 loosens tightness from 0.9 to 0.8"),
        ([{"steps": 1}, {"steps": 1, "tightness": 0.8}], "loosens tightness from 1 to 0.8"),
        ([{"steps": 1, "homeo_factor": 0.5}, {"steps": 1, "homeo_factor": 0.4}], "loosens homeo_factor"),
        ([{"steps": 1, "threshold": 0.1}, {"steps": 1, "threshold": 0.0}], "loosens threshold"),
        ([{"steps": 1, "conf": 0.9}, {"steps": 1}, {"steps": 1, "conf": 0.95}], "loosens conf from as declared"),
    ],
)
def test_refuses_at_construction(stages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CurriculumCallback(stages)


def test_intrinsic_weights_may_fall() -> None:
    assert len(read_stages([Stage(steps=1, intr_factor=3.0), Stage(steps=1, intr_factor=0.5)])) == 2


# What widening means for models that know the declared constraints.


@pytest.mark.parametrize("k", [0.25, 0.5, 0.8, 1.0])
def test_slack_is_what_widening_adds_to_margins(k: float) -> None:
    x = np.random.default_rng(0).uniform(0.0, 1.0, (500, 2))
    exact = ViabilitySet(["a >= 0.2", "b <= 0.9", "a + 0.5*b >= 0.4"], ["a", "b"], mu=[0.7, 0.5])
    np.testing.assert_allclose(exact.tighten(k).margins(x), exact.margins(x) + exact.slack(k), atol=1e-12)
    lopsided = ViabilitySet(["a in [0.2, 0.8]", "b >= 0.1"], ["a", "b"], mu=[0.7, 0.5], scale=[0.3, 1.0])
    assert (lopsided.tighten(k).margins(x) >= lopsided.margins(x) + lopsided.slack(k) - 1e-12).all()


def test_values_of_wider_constraints_are_those_of_the_declared_plus_slack() -> None:
    """Value iteration of the discounted safety Bellman equation on a random finite world, for both sets."""
    generator = np.random.default_rng(1)
    x = generator.uniform(-1.0, 1.0, (30, 1))
    successors = generator.integers(30, size=(30, 3))
    declared = ViabilitySet(["a >= -0.5"], ["a"], mu=[0.5])

    def value(viability: ViabilitySet, gamma: float = 0.9) -> np.ndarray:
        margin = viability.margins(x)[:, 0]
        q = np.zeros((30, 3))
        for _ in range(400):
            following = np.minimum(margin, q.max(axis=1))
            q = (1.0 - gamma) * margin[successors] + gamma * following[successors]
        return q

    k = 0.6
    np.testing.assert_allclose(value(declared.tighten(k)), value(declared) + declared.slack(k), atol=1e-9)


# Layers.


def bound(env: Any, stages: list[dict[str, Any]]) -> StageInForce:
    stage = StageInForce([*read_stages(stages), Demands()])
    env.bind({"curriculum": stage}, training=True)
    return stage


def test_constraints_cost_and_reward_change_at_the_same_step() -> None:
    rows = [[0.8, 0.5], [0.4, 0.5], [0.4, 0.5], [0.4, 0.5]]
    env = HomeostatReward(
        InternalState(Scripted(rows), **LIMITS), w=[1.0, 2.0], weight=0.5, alive_bonus="auto", death_penalty=3.0
    )
    stage = bound(env, [{"steps": 1, "tightness": 0.5, "homeo_factor": 0.2}])
    env.reset()
    info = env.step(0)[4]
    # Twice as wide: battery >= 0.2, heat in [0.4, 0.6]; the bonus is that of the farthest corner.
    bonus = 1.0 * 0.6**2 + 2.0 * 0.1**2
    assert info["cost"] == 0.0
    assert info["persist"] == {"margin": pytest.approx(-1 / 3), "stage": 0}
    assert info["reward_terms"]["homeo"] == pytest.approx(0.2 * 0.5 * (bonus - 0.4**2))
    stage.stage.fill_(1)
    info = env.step(0)[4]
    assert info["cost"] == 1.0
    assert info["persist"]["stage"] == 1
    assert info["reward_terms"]["homeo"] == pytest.approx(0.5 * (-(0.4**2) - 3.0))
    assert env.get_wrapper_attr("viability") == env.get_wrapper_attr("in_force")

    # Evaluation is of what is declared, whatever the stage.
    stage.stage.fill_(0)
    env.bind({"curriculum": stage}, training=False)
    info = env.step(0)[4]
    assert info["cost"] == 1.0 and "stage" not in info["persist"]


def test_the_gain_of_living_stays_positive_as_constraints_tighten() -> None:
    viability = ViabilitySet(LIMITS["constraints"], LIMITS["dims"], **{k: LIMITS[k] for k in ("mu", "low", "high")})
    env = HomeostatReward(InternalState(Scripted([[0.8, 0.5]] * 2), **LIMITS), alive_bonus="auto", death_penalty=1.0)
    stage = bound(env, [{"steps": 1, "tightness": k, "homeo_factor": k} for k in (0.3, 0.5, 0.9)])
    for number, k in enumerate((0.3, 0.5, 0.9, 1.0)):
        stage.stage.fill_(number)
        env.reset()
        env.step(0)
        layer: Any = env.layer
        assert layer.homeostat.worst_reward(viability.tighten(k)) == pytest.approx(0.0)


def test_a_bonus_that_would_pay_for_dying_is_refused() -> None:
    declared = Homeostat([0.8, 0.5], [1.0, 1.0]).safe_alive_bonus(
        ViabilitySet(LIMITS["constraints"], LIMITS["dims"], mu=LIMITS["mu"], low=LIMITS["low"], high=LIMITS["high"])
    )
    env = HomeostatReward(InternalState(Walker(), **LIMITS), alive_bonus=declared, death_penalty=9.0)
    bound(env, [{"steps": 1, "homeo_factor": 0.1}])
    with pytest.raises(RuntimeError, match=r"tightness 0\.5.*paid to die.*'auto'"):
        bound(env, [{"steps": 1, "tightness": 0.5}])
    poor = HomeostatReward(InternalState(Walker(), **LIMITS), alive_bonus=declared / 2, death_penalty=9.0)
    with pytest.raises(RuntimeError, match="paid to die"):
        bound(poor, [{"steps": 1, "homeo_factor": 0.1}])


def test_constraints_without_a_setpoint_cannot_be_widened() -> None:
    env = InternalState(Walker(), dims=["battery", "heat"], constraints=["battery >= 0.2"])
    with pytest.raises(RuntimeError, match="setpoint"):
        bound(env, [{"steps": 1, "tightness": 0.5}])


def test_intrinsic_rewards_are_scaled() -> None:
    env = RNDBonus(InternalState(Walker(), **LIMITS), weight=2.0)
    layer: Any = env.layer
    layer.bonus = lambda step: np.array([3.0])
    stage = bound(env, [{"steps": 1, "intr_factor": 0.25}])
    env.reset(seed=0)
    assert env.step(0)[4]["reward_terms"]["intrinsic"] == pytest.approx(1.5)
    stage.stage.fill_(1)
    assert env.step(0)[4]["reward_terms"]["intrinsic"] == pytest.approx(6.0)


def ahead(observation: Any, internal: Any, action: Any) -> tuple[Any, Any]:
    """A battery that falls by a tenth of the action."""
    following = internal.copy()
    following[:, 0] -= 0.1 * np.asarray(action)
    return following.astype(np.float32), following


def test_the_shield_allows_what_the_wider_constraints_do() -> None:
    env = ActionShield(
        InternalState(Scripted([[0.55, 0.5]] * 6), **LIMITS),
        mode="search",
        horizon=1,
        rollouts=1,
        conf=0.5,
        dynamics=ahead,
        backup=lambda observation, internal: np.zeros(len(observation), dtype=int),
    )
    stage = bound(env, [{"steps": 1, "tightness": 0.5}])
    env.reset()
    assert not env.step(1)[4]["intervened"]  # 0.45 is inside 0.2 ...
    stage.stage.fill_(1)
    assert env.step(1)[4]["intervened"]  # ... and outside 0.5
    stage.stage.fill_(0)
    assert not env.step(1)[4]["intervened"]
    env.bind({"curriculum": stage}, training=False)
    assert env.step(1)[4]["intervened"]


def test_the_critic_need_not_learn_anew() -> None:
    """Its values are of the declared constraints: the slack of wider ones is what the threshold is lowered by."""
    env = ActionShield(InternalState(Scripted([[0.6, 0.5]] * 6), **LIMITS), threshold=0.0, min_updates=0)
    layer: Any = env.layer
    critic = ViabilityCritic(layer.spec, [4])
    with torch.no_grad():
        critic.critics.biases[-1].fill_(-0.5)
        critic.critics.weights[-1].zero_()
    stage = StageInForce([Demands(tightness=0.6), Demands(tightness=0.7), Demands()])
    env.bind({"curriculum": stage, "viability": critic}, training=True)
    env.reset()
    # An action is worth -0.5; the slack is 1 / 0.6 - 1 = 0.67, 1 / 0.7 - 1 = 0.43, and 0.
    for number, passes in ((0, True), (1, False), (2, False), (0, True)):
        stage.stage.fill_(number)
        assert env.step(1)[4].get("shield", {}).get("infeasible", False) != passes


@pytest.mark.parametrize(
    ("shield", "stage", "message"),
    [
        ({"mode": "amortised"}, {"tightness": 0.5}, "mode='verify'"),
        ({"mode": "amortised"}, {"threshold": 0.1}, "mode='verify'"),
        ({"mode": "critic"}, {"conf": 0.5}, "mode='critic'"),
        ({"mode": "verify", "threshold": "calibrated"}, {"conf": 0.5}, "calibrated"),
        ({"mode": "critic", "threshold": 0.1}, {"threshold": 0.15}, "only tighten"),
        ({"mode": "verify", "conf": 0.9}, {"conf": 0.95}, "only tighten"),
    ],
)
def test_what_a_shield_cannot_follow_is_refused(shield: Any, stage: Any, message: str) -> None:
    env = ActionShield(InternalState(Walker(), **LIMITS), **shield)
    with pytest.raises(RuntimeError, match=message):
        bound(env, [{"steps": 1, **stage}])


# In training.


class Trace(BaseCallback):
    """What each step shows: number of steps, stage, cost, and whether the episode ended there."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.rows.append(
            (
                self.num_timesteps,
                infos[0]["persist"]["stage"],
                np.array([info["internal"] for info in infos]),
                np.array([info["cost"] for info in infos]),
                self.locals["dones"].copy(),
            )
        )
        return True


def make_ppo(env: VecEnv, **kwargs: Any) -> PPO:
    return PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1, policy_kwargs={"net_arch": [8]}, **kwargs)


STAGES = [{"steps": 100, "tightness": 0.5, "homeo_factor": 0.1}, {"steps": 64, "tightness": 0.8}]


def homeostatic(env: VecEnv) -> VecEnv:
    return VecHomeostatReward(VecInternalState(env), w=[1.0, 0.5, 1.5], alive_bonus="auto", death_penalty=20.0)


@pytest.mark.parametrize("kind", ["dummy", "subproc"])
def test_environments_layers_and_stage_change_together(kind: str) -> None:
    def make() -> gym.Env[Any, Any]:
        env = Monitor(gym.make("GridLifeFlat-v0", size=6, horizon=60, hazards=6, items=2))
        return HomeostatReward(InternalState(env), w=[1.0, 0.5, 1.5], alive_bonus="auto", death_penalty=20.0)

    makers: list[Any] = [make] * 2
    env: VecEnv = DummyVecEnv(makers) if kind == "dummy" else SubprocVecEnv(makers)
    trace = Trace()
    make_ppo(env, seed=1).learn(320, callback=[trace, CurriculumCallback(STAGES)])
    assert [sum(row[1] == stage for row in trace.rows) * 2 for stage in range(3)] == [128, 64, 128]
    declared = ViabilitySet(
        ["energy >= 0.2", "temp in [0.3, 0.7]", "integrity >= 0.6"],
        ["energy", "temp", "integrity"],
        mu=[0.7, 0.5, 0.9],
        low=[0, 0, 0],
        high=[1, 1, 1],
    )
    deaths = 0
    for _, stage, x, cost, done in trace.rows:
        outside = ~declared.tighten((0.5, 0.8, 1.0)[stage]).contains(x)
        assert (outside == (cost > 0.0)).all()
        assert (done >= outside).all()  # GridLife ends the episode by the same limits
        deaths += int(outside.sum())
    assert deaths > 5
    assert [v.tightness for v in env.get_attr("in_force")] == [1.0, 1.0]
    env.close()


def test_layers_around_the_compiled_environments_change_too() -> None:
    native = GridLifeVecEnv(2, flat=True, size=6, hazards=6, items=2, backend="numpy")
    env = homeostatic(native)
    trace = Trace()
    make_ppo(env, seed=0).learn(192, callback=[CurriculumCallback(STAGES), trace])
    assert native.viability.tightness == 0.8
    for _, stage, x, cost, done in trace.rows:
        assert ((cost > 0.0) == ~native.viability.tighten((0.5, 0.8)[stage] / 0.8).contains(x)).all()
        assert (done >= (cost > 0.0)).all()


def test_the_evaluation_environment_keeps_the_declared_constraints() -> None:
    def make() -> gym.Env[Any, Any]:
        return Monitor(gym.make("GridLifeFlat-v0", size=6, hazards=6, items=2))

    env, evaluation = (homeostatic(DummyVecEnv([make] * 2)) for _ in range(2))
    seen: list[tuple[float, float]] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            venvs: list[Any] = [env, evaluation]
            seen.extend((venv.layer.demands.tightness, venv.get_attr("viability")[0].tightness) for venv in venvs)
            return True

    tester = EvalCallback(evaluation, eval_freq=10, n_eval_episodes=1, callback_after_eval=Look(), verbose=0)
    make_ppo(env).learn(32, callback=[tester, CurriculumCallback(STAGES)])
    assert seen == [(0.5, 0.5), (1.0, 1.0)]


def make_walker(folder: Path | None = None, n: int = 2) -> DummyVecEnv:
    def make(index: int) -> gym.Env[Any, Any]:
        monitored = Monitor(Walker(), None if folder is None else str(folder / str(index)))
        return HomeostatReward(InternalState(monitored, **LIMITS), alive_bonus="auto")

    return DummyVecEnv([partial(make, index) for index in range(n)])


def test_the_metrics_are_about_the_declared_constraints_and_tell_the_stage(tmp_path: Path) -> None:
    trace = Trace()
    callbacks = [MetricsCallback(), trace, CurriculumCallback([{"steps": 64, "tightness": 0.1}])]
    make_ppo(make_walker(tmp_path)).learn(160, callback=callbacks)
    episodes = read_episodes(tmp_path / "persist.jsonl")
    assert {episode.stage for episode in episodes} == {0, 1}
    stages = {row[0]: row[1] for row in trace.rows}
    for episode in episodes:
        assert episode.stage == stages[episode.timestep]
    # A battery of 0.5 is reached in every episode, long before it ends: that counts, and in stage 0 costs nothing.
    assert all(not episode.survived for episode in episodes)
    assert all(cost.sum() == 0.0 for _, stage, _, cost, _ in trace.rows if stage == 0)
    old = EpisodeRecord.from_json(episodes[0].to_json().replace(', "stage": 0', ""))
    assert old.stage is None


def test_the_critic_keeps_the_declared_constraints() -> None:
    callback = ViabilityCallback(learning_starts=16)
    make_ppo(make_walker()).learn(64, callback=[CurriculumCallback([{"steps": 500, "tightness": 0.1}]), callback])
    assert callback.spec.viability.tightness == 1.0
    assert callback.updates > 0


def test_a_resumed_run_goes_on_in_its_stage(tmp_path: Path) -> None:
    stages = [{"steps": 64, "tightness": 0.2}, {"steps": 96, "tightness": 0.5}]
    model = make_ppo(make_walker())
    model.learn(128, callback=CurriculumCallback(stages))
    model.save(tmp_path / "model.zip")
    saved = PersistState.load(tmp_path / "model.zip").pending["curriculum_progress"]
    assert (saved["index"], saved["steps"]) == (1, 64)

    trace = Trace()
    env = make_walker()
    resumed = PPO.load(tmp_path / "model.zip", env=env)
    resumed.learn(96, callback=[trace, CurriculumCallback(stages)])
    assert [row[1] for row in trace.rows] == [1] * 16 + [2] * 32

    other = PPO.load(tmp_path / "model.zip", env=make_walker())
    with pytest.raises(PersistStateError, match="other"):
        other.learn(32, callback=CurriculumCallback(stages[:1]))


def test_off_policy_algorithms_change_between_their_rollouts() -> None:
    trace = Trace()
    model = DQN("MlpPolicy", make_walker(), learning_starts=8, train_freq=4, buffer_size=100, batch_size=4)
    model.learn(60, callback=[trace, CurriculumCallback([{"steps": 20, "tightness": 0.5}])])
    assert [row[0] for row in trace.rows if row[1] == 0][-1] == 24  # four steps of two environments a rollout


@pytest.mark.parametrize(
    ("stage", "message"),
    [({"intr_factor": 0.5}, "intr_factor.*RNDBonus"), ({"threshold": 0.1}, "threshold.*ActionShield")],
)
def test_what_nothing_follows_is_refused(stage: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        make_ppo(make_walker()).learn(32, callback=CurriculumCallback([{"steps": 10, **stage}]))


def test_a_hyperparameter_file_has_stages() -> None:
    entry = {
        "vec_env_wrapper": [
            {"persist_sb3.wrappers.VecInternalState": LIMITS},
            {"persist_sb3.wrappers.VecRandomSetpoint": {"ranges": {"battery": [0.6, 0.9]}}},
            {"persist_sb3.wrappers.VecHomeostatReward": {"alive_bonus": "auto"}},
        ],
        "callback": [
            {"persist_sb3.callbacks.CurriculumCallback": {"stages": [{"steps": 32, "tightness": 0.5}]}},
            {"persist_sb3.callbacks.SetpointCallback": {"episodes": 2, "startup": 1}},
        ],
    }
    wrap: Any = get_wrapper_class(entry, "vec_env_wrapper")
    model = make_ppo(wrap(DummyVecEnv([lambda: Monitor(Walker())] * 2)))
    model.learn(64, callback=get_callback_list(entry))
    assert model.persist.parts["curriculum_progress"].finished  # type: ignore[attr-defined]


def test_a_configuration_has_stages() -> None:
    data = {"curriculum": [{"steps": 1000, "tightness": 0.5}]}
    config = PersistConfig.model_validate(data)
    assert config.zoo_entry()["callback"][0] == {
        "persist_sb3.callbacks.CurriculumCallback": {"stages": [{"steps": 1000, "tightness": 0.5}]}
    }
    assert isinstance(config.callbacks()[0], CurriculumCallback)
    with pytest.raises(ValueError, match="did you mean 'tightness'"):
        PersistConfig.model_validate({"curriculum": [{"steps": 1, "tightnes": 0.5}]})
