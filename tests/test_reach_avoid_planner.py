"""ReachAvoidPlanner: the same in all forms, an agent by itself, a demonstrator, and a backup of the shield."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from rl_zoo3.utils import ALGOS
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from persist_sb3.callbacks import InternalModelCallback, MetricsCallback, ViabilityCallback, WorldModelCallback
from persist_sb3.models.imagination import LatentDynamics, rollout
from persist_sb3.models.latent import LatentModel
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.planning import Plan
from persist_sb3.recording import record
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import (
    ActionShield,
    InternalState,
    PlannerError,
    PlannerPolicy,
    ReachAvoidPlanner,
    ShieldError,
    VecActionShield,
    VecInternalState,
    VecReachAvoidPlanner,
    VectorInternalState,
    VectorReachAvoidPlanner,
)
from persist_sb3.wrappers.adapters import lookup
from tests.learners import set_up

LIMITS: dict[str, Any] = {"dims": ["tank"], "constraints": ["tank in [0.1, 0.9]"], "mu": [0.5]}
GAIN = np.array([-0.08, 0.03, 0.1])
N = 3


class Tank(gym.Env[Any, Any]):
    """A tank that is filled or emptied, with a disturbance that only the environment knows; overflow is death."""

    observation_space = spaces.Box(0.0, 1.0, (1,), dtype=np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, disturbance: float = 0.01) -> None:
        self.disturbance = disturbance

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.level, self.time = self.np_random.uniform(0.3, 0.7), 0
        return self._seen(), {"internal": np.array([self.level])}

    def _seen(self) -> NDArray[np.float32]:
        return np.array([self.level], dtype=np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.level += float(GAIN[action]) + self.np_random.uniform(-self.disturbance, self.disturbance)
        dead = not 0.1 <= self.level <= 0.9
        return self._seen(), 0.0, dead, self.time >= 15, {"internal": np.array([self.level])}


def flow(observation: Any, x: NDArray[Any], action: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
    level = x + GAIN[action][:, None]
    return level, level


PLAN: dict[str, Any] = {"dynamics": flow, "horizon": 4, "rollouts": 1}


def make_vec(factory: Any = Tank, **kwargs: Any) -> VecReachAvoidPlanner:
    venv = DummyVecEnv([lambda: Monitor(factory())] * N)
    return VecReachAvoidPlanner(VecInternalState(venv, **LIMITS), **kwargs)


# Forms


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persist_sb3.state._last_loaded", None)


def gym_rows(steps: int) -> list[list[tuple[float, bool]]]:
    rows: list[list[tuple[float, bool]]] = []
    for slot in range(N):
        env = ReachAvoidPlanner(InternalState(Tank(), **LIMITS), **PLAN)
        env.reset(seed=slot)
        rows.append([])
        for _ in range(steps):
            _, _, terminated, truncated, info = env.step(2)
            rows[-1].append((float(info["internal"][0]), bool(info["intervened"])))
            if terminated or truncated:
                env.reset()
    return rows


def test_all_forms_do_the_same() -> None:
    steps = 40
    expected = gym_rows(steps)
    env = make_vec(**PLAN)
    env.seed(0)
    env.reset()
    rows: list[list[tuple[float, bool]]] = [[] for _ in range(N)]
    for _ in range(steps):
        *_, infos = env.step(np.full(N, 2))
        for slot, info in enumerate(infos):
            rows[slot].append((float(info["internal"][0]), bool(info["intervened"])))
    assert rows == expected
    vector = VectorReachAvoidPlanner(
        VectorInternalState(SyncVectorEnv([Tank] * N, autoreset_mode=AutoresetMode.SAME_STEP), **LIMITS), **PLAN
    )
    vector.reset(seed=0)
    for time in range(steps):
        *_, terminated, truncated, reported = vector.step(np.full(N, 2))
        for slot in range(N):
            source = reported["final_info"] if (terminated | truncated)[slot] else reported
            assert source["internal"][slot][0] == expected[slot][time][0]
    assert any(intervened for row in expected for _, intervened in row)


def test_it_keeps_alive_and_in_the_middle_whatever_is_proposed() -> None:
    env = make_vec(**PLAN)
    env.seed(0)
    env.reset()
    for step in range(60):
        *_, dones, infos = env.step(np.full(N, 2 * (step % 2)))
        assert not dones.any() or all(infos[slot]["TimeLimit.truncated"] for slot in np.flatnonzero(dones))
        levels = np.array([info["internal"][0] for info in infos])
        assert (np.abs(levels - 0.5) < 0.26).all()
        for info in infos:
            assert info["planner"]["feasible"] and info["planner"]["margin"] > 0.0
            assert np.isnan(info["planner"]["reached"])
            assert ("executed_action" in info) == bool(info["intervened"])


def test_it_goes_for_the_target() -> None:
    env = make_vec(lambda: Tank(0.0), target=["tank >= 0.8"], **PLAN)
    env.seed(0)
    env.reset()
    levels = []
    for _ in range(10):
        *_, dones, infos = env.step(np.zeros(N, dtype=np.int64))
        levels.append([info["internal"][0] for info in infos])
        assert not dones.any()
    # At most 0.5 to fill, 0.09 a step at least.
    assert (np.max(levels[:6], axis=0) >= 0.8).all() and np.min(levels[6:]) > 0.7
    assert all(info["planner"]["reached"] == 1.0 for info in infos)


# Demonstrations


def test_it_demonstrates() -> None:
    venv = make_vec(**PLAN)
    demonstrations = record(PlannerPolicy(venv), venv, 6, seed=3)
    assert demonstrations.episodes == 6 and (demonstrations.lengths == 15).all()
    transitions = demonstrations.transitions
    np.testing.assert_array_equal(transitions.action, transitions.executed_action)
    change = (transitions.next_internal - transitions.internal)[:, 0]
    np.testing.assert_allclose(change, GAIN[transitions.action], atol=0.0101)


# Learned models


SMALL: dict[str, Any] = {"net_arch": [16], "members": 2, "train_freq": 1, "batch_size": 64}


def learn(env: Any, callbacks: list[BaseCallback], steps: int = 480) -> PPO:
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(steps, callback=callbacks)
    return model


def models(learning_starts: int = 64) -> list[BaseCallback]:
    return [
        callback(learning_starts=learning_starts, **SMALL) for callback in (InternalModelCallback, WorldModelCallback)
    ]


def test_it_plans_with_models_that_are_trained_meanwhile(tmp_path: Path) -> None:
    env = make_vec(horizon=4, rollouts=2, min_updates=120)
    model = learn(env, [*models(), MetricsCallback(log_path=tmp_path)])
    assert env.layer.plan is not None
    deaths = 0
    for _ in range(60):
        *_, dones, infos = env.step(np.full(N, 2))
        deaths += sum(not infos[slot]["TimeLimit.truncated"] for slot in np.flatnonzero(dones))
    assert deaths == 0
    model.save(tmp_path / "model")
    expected = env.layer.plan
    # In a replay they come from the policy.
    PPO.load(tmp_path / "model", device="cpu")
    fresh = make_vec(horizon=4, rollouts=2, min_updates=120)
    fresh.reset()
    fresh.layer._observation, fresh.layer._x = env.layer._observation, env.layer._x
    assert fresh.layer.plan is not None and expected is not None
    np.testing.assert_array_equal(fresh.layer.plan.course, expected.course)


LATENT: dict[str, Any] = {
    "kind": "latent",
    "gru_size": 8,
    "units": 8,
    "groups": 2,
    "classes": 3,
    "batch_size": 4,
    "sequence_length": 4,
    "learning_starts": 64,
    "train_freq": 2,
}


def test_a_latent_model_remembers_through_the_plan(tmp_path: Path) -> None:
    parameters: dict[str, Any] = {"horizon": 4, "rollouts": 1, "chance": False, "min_updates": 20}
    env = make_vec(**parameters)
    # It imagines the internal variables, too, so that nobody else need learn them.
    model = learn(env, [WorldModelCallback(**LATENT)], steps=384)
    plan = env.layer.plan
    assert plan is not None
    latent = env.layer._models["world_model"]
    assert isinstance(latent, LatentModel)
    state = env.layer.spec.encode(env.layer._observation, env.layer._x)
    path = rollout(LatentDynamics(latent), state, plan.course.swapaxes(0, 1), 4, np.zeros(N, dtype=np.intp), None)
    margins = env.layer.spec.viability.margins(path[..., 1:].reshape(-1, 1)).min(axis=1).reshape(4, N)
    np.testing.assert_allclose(plan.margin, margins.min(axis=0), rtol=1e-5)

    # A replay takes it from the policy.
    model.save(tmp_path / "model")
    PPO.load(tmp_path / "model", device="cpu")
    fresh = make_vec(**parameters)
    fresh.reset()
    fresh.layer._observation, fresh.layer._x = env.layer._observation, env.layer._x
    assert fresh.layer.plan is not None
    np.testing.assert_array_equal(fresh.layer.plan.course, plan.course)


@pytest.mark.slow
def test_in_worker_processes_it_is_the_same() -> None:
    def factory() -> gym.Env[Any, Any]:
        return ReachAvoidPlanner(InternalState(Tank(), **LIMITS), horizon=2, rollouts=2, width=2, min_updates=5)

    levels = []
    for form in (DummyVecEnv, SubprocVecEnv):
        venv = form([factory] * 2)
        model = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
        seen: list[float] = []

        class See(BaseCallback):
            def _on_step(self, seen: list[float] = seen) -> bool:
                seen.extend(float(info["internal"][0]) for info in self.locals["infos"])
                return True

        model.learn(96, callback=[*models(16), See()])
        levels.append(seen)
        venv.close()
    assert levels[0] == levels[1]


def test_the_critic_joins_where_there_is_one() -> None:
    env = make_vec(min_updates=1)
    learn(env, [*models(), ViabilityCallback(learning_starts=64, net_arch=[16])], steps=96)
    assert set(env.layer._models) == {"internal_model", "world_model", "viability"}


def refused(venv: Any, error: type[Exception], callbacks: list[BaseCallback]) -> None:
    """
    :param venv: lacks models
    :param error: of which type the refusal is
    :param callbacks: do not train them
    """
    with pytest.raises(error, match=r"InternalModelCallback, persist_sb3\.callbacks\.WorldModelCallback"):
        learn(venv, callbacks)
    # Nobody has taken a step.
    assert set(venv.get_attr("time")) == {0}


def test_without_its_models_it_is_refused_when_training_starts() -> None:
    refused(make_vec(), PlannerError, [ViabilityCallback()])
    refused(make_vec(), PlannerError, [MetricsCallback()])
    shield = VecActionShield(VecInternalState(DummyVecEnv([Tank]), **LIMITS), infeasible="planner")
    refused(shield, ShieldError, [ViabilityCallback()])


@pytest.mark.slow
def test_workers_without_models_tell_the_main_process() -> None:
    venv = SubprocVecEnv([lambda: ReachAvoidPlanner(InternalState(Tank(), **LIMITS))])
    refused(venv, PlannerError, [ViabilityCallback()])
    venv.close()


def test_without_models_actions_pass_and_it_says_so() -> None:
    env = make_vec()
    env.reset()
    with pytest.warns(UserWarning, match="lets every action pass"):
        *_, infos = env.step(np.full(N, 2))
    assert not infos[0]["intervened"] and "planner" not in infos[0]
    with pytest.raises(PlannerError, match="min_updates=500"):
        PlannerPolicy(env).predict(None)


def test_a_model_that_fails_stops_the_run() -> None:
    env = make_vec(dynamics=lambda o, x, a: (o, np.full_like(x, np.nan)), horizon=2)
    env.reset()
    with pytest.raises(PlannerError, match="environments 0, 1, 2"):
        env.step(np.zeros(N, dtype=np.int64))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"conf": 0.0}, ValueError),
        ({"conf": 1.1}, ValueError),
        ({"horizon": 0}, ValueError),
        ({"min_updates": -1}, ValueError),
        ({"target": ["tnak >= 0.5"]}, RuntimeError),
        ({"target": "tank >= 0.5"}, ValueError),
        ({"target": []}, ValueError),
        ({"progress": "food"}, ValueError),
        ({"dynamics": "world_model"}, ValueError),
    ],
)
def test_wrong_parameters(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="tnak" if error is RuntimeError else next(iter(wrong))):
        make_vec(**{**PLAN, **wrong})


# The shield's backup


def critic_that_passes(nothing_above: float) -> ViabilityCritic:
    """``Q(s, a) = 0.5 - (tank - 0.3)`` for every action, less 0.01 for action 0: none passes where the tank is full."""
    spec = StateSpec(Tank.observation_space, Tank.action_space, ViabilitySet(LIMITS["constraints"], ["tank"], mu=[0.5]))
    critic = ViabilityCritic(spec, net_arch=[], members=2)
    with torch.no_grad():
        critic.critics.weights[0].zero_()
        critic.critics.weights[0][:, 1] = -1.0
        drop = torch.tensor([0.01, 0.0, 0.0]).repeat_interleave(critic.heads)
        critic.critics.biases[0][:] = nothing_above - drop
        critic.standardizer.var.fill_(1.0 - 1e-4)
    critic.updates.fill_(1000)
    return critic


@pytest.mark.parametrize("infeasible", ["safest", "planner"])
def test_where_no_action_passes_the_planner_finds_a_way_back(infeasible: Any) -> None:
    # Value 0.7 - tank, threshold 0.2: above 0.5 nothing passes, and the critic by itself prefers to stay.
    env = ActionShield(
        InternalState(Tank(), **LIMITS), dynamics=flow, horizon=4, rollouts=1, infeasible=infeasible, threshold=0.2
    )
    env.bind({"viability": critic_that_passes(0.7)}, training=False)
    env.reset(seed=0)
    env.unwrapped.level = 0.72  # type: ignore[attr-defined]
    env.layer._x[:], env.layer._observation = 0.72, np.array([[0.72]], dtype=np.float32)
    executed = []
    for _ in range(4):
        *_, info = env.step(2)
        executed.append(int(info.get("executed_action", 2)))
        if len(executed) == 1:
            assert info["shield"]["infeasible"]
    if infeasible == "planner":
        assert executed[:2] == [0, 0] and info["internal"][0] < 0.6
    else:
        assert 0 not in executed[:2]


def test_where_no_course_helps_the_safest_is_executed() -> None:
    env = ActionShield(InternalState(Tank(), **LIMITS), dynamics=flow, horizon=1, rollouts=1, infeasible="planner")
    env.bind({"viability": critic_that_passes(-0.5)}, training=False)
    env.reset(seed=0)
    *_, info = env.step(0)
    assert info["shield"]["infeasible"] and int(info["executed_action"]) in (1, 2)


def test_a_backup_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="infeasible='pray'"):
        ActionShield(InternalState(Tank(), **LIMITS), infeasible="pray")
    with pytest.raises(ValueError, match="dynamics='world_model' must be a function"):
        ActionShield(InternalState(Tank(), **LIMITS), infeasible="planner", dynamics="world_model")


def test_a_latent_model_alone_is_enough_for_the_backup() -> None:
    env = ActionShield(InternalState(Tank(), **LIMITS), infeasible="planner", horizon=2, rollouts=2, min_updates=0)
    critic = critic_that_passes(-0.5)
    latent = LatentModel(critic.spec, gru_size=4, units=4, groups=1, classes=2)
    env.bind({"viability": critic, "world_model": latent}, training=False)
    env.reset(seed=0)
    *_, info = env.step(0)
    assert info["shield"]["infeasible"]
    assert env.layer.wiring_error is None


def test_the_backup_asks_for_its_models() -> None:
    env = ActionShield(InternalState(Tank(), **LIMITS), infeasible="planner")
    env.bind({"viability": critic_that_passes(0.7)}, training=True)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="WorldModelCallback"):
        env.step(2)


# From a hyperparameter file, as rl-zoo3 reads it


@pytest.mark.parametrize(
    ("algo", "env_id", "kind"),
    [
        ("ppo", "GridLifeFlat-v0", "gaussian"),
        ("ppo", "GridLifeFlat-v0", "latent"),
        ("sac", "GridLifeContinuous-v0", "gaussian"),
    ],
)
def test_it_works_from_a_hyperparameter_file(algo: str, env_id: str, kind: str, tmp_path: Path) -> None:
    search = {"target": ["energy >= 0.5"], "horizon": 2, "rollouts": 2, "width": 4, "samples": 4, "rounds": 1}
    quick = {"learning_starts": 32} | SMALL
    learned: dict[str, Any] = {
        "gaussian": [{"InternalModelCallback": quick}, {"WorldModelCallback": quick}],
        "latent": [{"WorldModelCallback": LATENT | {"learning_starts": 32}}],
    }
    entry: dict[str, Any] = {
        "n_envs": 2,
        "n_timesteps": 128,
        "vec_env_wrapper": [
            "persist_sb3.wrappers.VecInternalState",
            {"persist_sb3.wrappers.VecReachAvoidPlanner": search | {"min_updates": 4}},
        ],
        "callback": [
            {f"persist_sb3.callbacks.{name}": kwargs for name, kwargs in callback.items()}
            for callback in [{"ViabilityCallback": {"net_arch": [16], "learning_starts": 32}}, *learned[kind]]
        ],
    }
    if algo == "ppo":
        entry |= {"policy": "MlpPolicy", "n_steps": 32, "batch_size": 32, "n_epochs": 1}
    else:
        buffer = "get_class_by_name('persist_sb3.buffers.ExecutedActionDictReplayBuffer')"
        entry |= {"policy": "MultiInputPolicy", "learning_starts": 100, "replay_buffer_class": buffer}
    manager, model = set_up(algo, env_id, entry, tmp_path, steps=128)
    env = model.get_env()
    assert env is not None
    manager.learn(model)
    trained = lookup(env, "layer")
    assert isinstance(trained.plan, Plan)
    assert "viability" in trained._models

    model.save(tmp_path / "model")
    ALGOS[algo].load(tmp_path / "model", device="cpu")
    replay = manager.create_envs(2, eval_env=True, no_log=True)
    replay.reset()
    *_, infos = replay.step(np.stack([replay.action_space.sample() for _ in range(2)]))
    assert all(np.isfinite(info["planner"]["margin"]) and info["planner"]["reached"] >= 0.0 for info in infos)
    env.close()
    replay.close()
