"""ActionShield: the same in all forms, in every process, and never silently absent."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from persist_sb3.callbacks import MetricsCallback, ViabilityCallback, bind_all
from persist_sb3.metrics import read_episodes
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.state import PersistState
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import (
    ActionShield,
    InternalState,
    ShieldError,
    VecActionShield,
    VecInternalState,
    VectorActionShield,
    VectorInternalState,
)
from tests.toys import Walker

LIMITS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"]}
PENALTY = 0.25
THRESHOLD = 0.2
N = 3


def value(battery: float, action: int) -> float:
    """What the critic below gives an action of a Walker."""
    return battery - 0.1 * action - 0.25


def make_critic(failing: bool = False, spec: StateSpec | None = None) -> ViabilityCritic:
    """
    :return: a critic that says what :func:`value` says
    """
    walker = Walker()
    viability = ViabilitySet(LIMITS["constraints"], LIMITS["dims"])
    critic = ViabilityCritic(spec or StateSpec(walker.observation_space, walker.action_space, viability), net_arch=[])
    with torch.no_grad():
        critic.critics.weights[0].zero_()
        critic.critics.weights[0][:, 4] = 1.0  # The battery, behind four observations.
        drain = torch.arange(3.0).repeat_interleave(critic.heads)
        critic.critics.biases[0][:] = np.nan if failing else -0.1 * drain - 0.25
        # As if it had seen data of mean 0 and variance 1.
        critic.standardizer.var.fill_(1.0 - 1e-4)
    critic.updates.fill_(1000)
    return critic


def bundle(**more: Any) -> Mapping[str, Any]:
    return {"viability": make_critic(**more)}


def make_gym(**kwargs: Any) -> ActionShield:
    return ActionShield(InternalState(Walker(), **LIMITS), **kwargs)


def make_vec(n: int = N, **kwargs: Any) -> VecActionShield:
    return VecActionShield(VecInternalState(DummyVecEnv([lambda: Monitor(Walker())] * n), **LIMITS), **kwargs)


def make_vector(mode: AutoresetMode, **kwargs: Any) -> VectorActionShield:
    env = SyncVectorEnv([Walker] * N, autoreset_mode=mode)
    return VectorActionShield(VectorInternalState(env, **LIMITS), **kwargs)


def propose(observation: Any) -> int:
    """An action that depends on what is seen alone, and so is the same in every form."""
    return int(abs(observation[1]) * 1e4) % 3


def row(observation: Any, reward: Any, info: Mapping[str, Any], proposed: int) -> tuple[Any, ...]:
    executed = int(info["executed_action"]) if info["intervened"] else proposed
    return (*np.asarray(observation).tolist(), float(reward), bool(info["intervened"]), executed)


def gym_trajectory(slot: int, steps: int) -> list[Any]:
    env = make_gym(intervention_penalty=PENALTY)
    env.bind(bundle(), training=True)
    observation, _ = env.reset(seed=slot)
    rows = []
    for _ in range(steps):
        proposed = propose(observation)
        observation, reward, terminated, truncated, info = env.step(proposed)
        if terminated or truncated:
            observation, _ = env.reset()
        rows.append(row(observation, reward, info, proposed))
    return rows


def vec_trajectories(steps: int) -> list[list[Any]]:
    env = make_vec(intervention_penalty=PENALTY)
    env.bind(bundle(), training=True)
    env.seed(0)
    observations: Any = env.reset()
    rows: list[list[Any]] = [[] for _ in range(N)]
    for _ in range(steps):
        proposed = [propose(observation) for observation in observations]
        observations, rewards, _, infos = env.step(np.array(proposed))
        for slot in range(N):
            rows[slot].append(row(observations[slot], rewards[slot], infos[slot], proposed[slot]))
    return rows


def vector_trajectories(mode: AutoresetMode, steps: int) -> list[list[Any]]:
    env = make_vector(mode, intervention_penalty=PENALTY)
    env.bind(bundle(), training=True)
    observations, _ = env.reset(seed=0)
    rows: list[list[Any]] = [[] for _ in range(N)]
    over = np.zeros(N, dtype=bool)
    for _ in range(2 * steps):
        proposed = [propose(observation) for observation in observations]
        observations, rewards, terminated, truncated, infos = env.step(np.array(proposed))
        ended = terminated | truncated
        for slot in range(N):
            if over[slot]:  # The step after the end only resets.
                assert not infos["intervened"][slot] and rewards[slot] == 0.0
                rows[slot][-1] = (*observations[slot].tolist(), *rows[slot][-1][len(observations[slot]) :])
                continue
            reported = infos["final_info"] if mode is AutoresetMode.SAME_STEP and ended[slot] else infos
            info = {key: reported[key][slot] for key in ("intervened", "executed_action") if key in reported}
            rows[slot].append(row(observations[slot], rewards[slot], info, proposed[slot]))
        over = ended & (mode is AutoresetMode.NEXT_STEP)
    return [slot_rows[:steps] for slot_rows in rows]


def test_three_forms_one_trajectory() -> None:
    expected = [gym_trajectory(slot, 30) for slot in range(N)]
    interventions = [step[-2] for rows in expected for step in rows]
    assert 0 < sum(interventions) < len(interventions)
    assert vec_trajectories(30) == expected
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        assert vector_trajectories(mode, 30) == expected


def test_every_decision_is_the_one_that_was_asked_for() -> None:
    env = make_gym()
    env.bind(bundle(), training=True)
    _, info = env.reset(seed=0)
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        battery, proposed = float(info["internal"][0]), int(generator.integers(3))
        passing = [action for action in range(3) if value(battery, action) >= THRESHOLD]
        *_, terminated, truncated, info = env.step(proposed)
        # The safest action drains the least.
        executed = proposed if proposed in passing else 0
        assert info["intervened"] == (executed != proposed)
        assert info.get("executed_action", proposed) == executed
        drained = battery - 0.03 - 0.02 * executed
        assert info["internal"][0] == pytest.approx(drained, abs=1e-9)
        if proposed not in passing:
            told = info["shield"]
            assert told["proposed"] == proposed and told["constraint"] == 0 and told["step"] == -1
            assert told["value"] == pytest.approx(value(battery, proposed), abs=1e-5)
            assert told["executed_value"] == pytest.approx(value(battery, executed), abs=1e-5)
            assert told["infeasible"] == (not passing) and not told["failed"]
            assert np.isnan(told["p_safe"]) and np.isnan(told["executed_p_safe"])
        else:
            assert "shield" not in info
        seen.add((bool(passing), proposed in passing))
        if terminated or truncated:
            _, info = env.reset()
    assert seen == {(True, True), (True, False), (False, False)}


def test_the_penalty_is_a_reward_term() -> None:
    env = make_gym(intervention_penalty=PENALTY)
    env.bind(bundle(), training=True)
    env.reset(seed=0)
    for _ in range(12):
        _, reward, terminated, truncated, info = env.step(2)
        assert info["reward_terms"]["intervention"] == (-PENALTY if info["intervened"] else 0.0)
        assert sum(info["reward_terms"].values()) == reward
        if terminated or truncated:
            break


# Masks


def test_masks_say_which_actions_pass() -> None:
    env = make_vec(n=2)
    assert is_masking_supported(env)
    normalized = VecNormalize(env)
    assert is_masking_supported(normalized)
    env.seed(0)
    env.reset()
    with pytest.warns(UserWarning, match="lets every action pass"):
        assert np.asarray(get_action_masks(env)).all()
    env.bind(bundle(), training=True)
    for _ in range(12):
        batteries = [info[0] for info in env.get_attr("x")]
        passing = [[value(battery, action) >= THRESHOLD for action in range(3)] for battery in batteries]
        expected = [row if any(row) else [True, False, False] for row in passing]
        np.testing.assert_array_equal(get_action_masks(normalized), expected)
        np.testing.assert_array_equal(env.env_method("action_masks", indices=[1]), expected[1:])
        env.step(np.array([0, 1]))


@pytest.mark.parametrize("asked", [{"inset": 0.5}, {"projection": "gradient"}], ids=str)
def test_what_is_about_box_actions_is_refused_where_there_are_none(asked: dict[str, Any]) -> None:
    env = VecInternalState(DummyVecEnv([Walker]), **LIMITS)
    (key,) = asked
    with pytest.raises(RuntimeError, match=rf"{key}=\S+ is about Box actions, and Discrete\(3\) is none: leave it out"):
        VecActionShield(env, **asked)


def test_box_actions_have_no_masks() -> None:
    env = VecInternalState(DummyVecEnv([lambda: Walker(action="box")]), **LIMITS)
    assert not is_masking_supported(VecActionShield(env))
    with pytest.raises(RuntimeError, match=r"cannot mask Box"):
        VecActionShield(env, correction="mask")


@pytest.mark.parametrize("normalize", [False, True])
def test_maskable_ppo_never_meets_an_intervention(normalize: bool) -> None:
    env: Any = make_vec(correction="mask", min_updates=4)
    if normalize:
        env = VecNormalize(env)
    model = MaskablePPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    rates: list[bool] = []

    class Watch(MetricsCallback):
        def _on_step(self) -> bool:
            rates.extend(info["intervened"] for info in self.locals["infos"])
            return super()._on_step()

    model.learn(192, callback=[ViabilityCallback(net_arch=[16], learning_starts=32, train_freq=8), Watch()])
    assert len(rates) == 192 and not any(rates)
    assert int(model.persist.parts["viability"].updates) > 4  # type: ignore[attr-defined]


def make_shielded() -> gym.Env[Any, Any]:
    return make_gym()


def test_in_worker_processes() -> None:
    env = SubprocVecEnv([make_shielded])
    try:
        state = PersistState()
        state.register("viability", make_critic(), shared=True)
        bind_all(env, state, training=True)
        env.seed(0)
        observations: Any = env.reset()
        assert is_masking_supported(env)
        for _ in range(12):
            masks = get_action_masks(env)
            proposed = [propose(observation) for observation in observations]
            batteries = observations[:, 0]
            observations, _, _, infos = env.step(np.array(proposed))
            for slot in range(1):
                passing = [value(batteries[slot], action) >= THRESHOLD for action in range(3)]
                assert masks[slot].tolist() == (passing if any(passing) else [True, False, False])
                assert infos[slot]["intervened"] == (not passing[proposed[slot]] and proposed[slot] != 0)
        with torch.no_grad():  # What is trained here is seen there.
            state.parts["viability"].critics.biases[0].add_(10.0)  # type: ignore[attr-defined]
        assert np.asarray(get_action_masks(env)).all()
    finally:
        env.close()


# Waiting, failing, missing


def test_while_it_waits_actions_pass_or_the_fallback_is_executed() -> None:
    for fallback, executed, masks in ((None, 2, [True, True, True]), (1, 1, [False, True, False])):
        env = make_gym(min_updates=1001, fallback=fallback)
        env.bind(bundle(), training=True)
        env.reset(seed=0)
        assert env.action_masks().tolist() == masks
        *_, info = env.step(2)
        assert info.get("executed_action", 2) == executed and info["intervened"] == (executed != 2)


SAFE = [0, 2]


def test_one_of_several_safe_actions_is_drawn_for_each_step() -> None:
    env = make_vec(n=40, min_updates=1001, fallback=SAFE)
    env.bind(bundle(), training=True)
    env.seed(0)
    env.reset()
    drawn = []
    for _ in range(30):
        # Asked again, nothing is drawn anew; and who does what the mask permits is not corrected.
        masks = np.asarray(get_action_masks(env))
        np.testing.assert_array_equal(masks, get_action_masks(env))
        assert (masks.sum(axis=1) == 1).all()
        drawn.append(masks.argmax(axis=1))
        proposed = np.where(np.arange(40) % 2, 1, drawn[-1])
        *_, infos = env.step(proposed)
        assert [info["intervened"] for info in infos] == (proposed != drawn[-1]).tolist()
        assert [info.get("executed_action", own) for info, own in zip(infos, proposed, strict=True)] == drawn[
            -1
        ].tolist()
    picks = np.array(drawn)
    assert set(picks.ravel()) == set(SAFE)
    # Of 1200 draws; and neither environments nor steps draw alike.
    assert abs((picks == 2).mean() - 0.5) < 0.06
    assert len({tuple(column) for column in picks.T}) == 40 and len({tuple(row) for row in picks}) == 30
    again = make_vec(n=40, min_updates=1001, fallback=SAFE)
    again.seed(0)
    again.bind(bundle(), training=True)
    again.reset()
    np.testing.assert_array_equal(get_action_masks(again)[:, 2], picks[0] == 2)


def test_safe_actions_are_the_same_in_every_form() -> None:
    waiting: dict[str, Any] = {"min_updates": 1001, "fallback": SAFE}
    expected = []
    for slot in range(N):
        env = make_gym(**waiting)
        env.bind(bundle(), training=True)
        env.reset(seed=slot)
        row = []
        for _ in range(30):
            *_, terminated, truncated, info = env.step(1)
            row.append(info["executed_action"])
            if terminated or truncated:
                env.reset()
        expected.append(row)
    vec = make_vec(**waiting)
    vec.bind(bundle(), training=True)
    vec.seed(0)
    vec.reset()
    proposed = np.ones(N, dtype=int)
    assert (
        np.array([[info["executed_action"] for info in vec.step(proposed)[3]] for _ in range(30)]).T.tolist()
        == expected
    )
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        vector = make_vector(mode, **waiting)
        vector.bind(bundle(), training=True)
        vector.reset(seed=0)
        found: list[list[int]] = [[] for _ in range(N)]
        over = np.zeros(N, dtype=bool)
        for _ in range(40):
            *_, died, late, infos = vector.step(proposed)
            ended = died | late
            for place in np.flatnonzero(~over).tolist():
                reported = infos["final_info"] if mode is AutoresetMode.SAME_STEP and ended[place] else infos
                found[place].append(int(reported["executed_action"][place]))
            over = ended & (mode is AutoresetMode.NEXT_STEP)
        assert [row[:30] for row in found] == expected


def test_where_models_fail_one_of_the_safe_actions_is_executed() -> None:
    env = make_vec(n=20, fallback=SAFE)
    env.bind(bundle(failing=True), training=True)
    env.reset()
    executed = []
    with pytest.warns(UserWarning, match="environment 0 at step 0"):
        get_action_masks(env)
    for _ in range(3):
        permitted = np.asarray(get_action_masks(env)).argmax(axis=1).tolist()
        *_, infos = env.step(np.ones(20, dtype=int))
        executed += [info["executed_action"] for info in infos]
        assert executed[-20:] == permitted
    assert set(executed) == set(SAFE)


def test_safe_actions_of_several_components() -> None:
    boxes = [[0.0, 0.5], [-1.0, 1.0]]
    for kind, given, expected in (
        ("box", boxes[0], boxes[:1]),
        ("box", boxes, boxes),
        ("multidiscrete", [1, 2], [[1, 2]]),
        ("multidiscrete", [[1, 2], [0, 0]], [[1, 2], [0, 0]]),
    ):
        env = ActionShield(InternalState(Walker(action=kind), **LIMITS), fallback=given, min_updates=1001)
        spec = StateSpec(env.observation_space, env.action_space, env.guarded)
        env.bind({"viability": ViabilityCritic(spec, [])}, training=True)
        proposed = np.array([1, 1], dtype=env.action_space.dtype)
        seen = set()
        for seed in range(12):
            env.reset(seed=seed)
            seen.add(tuple(env.step(proposed)[4]["executed_action"].tolist()))
        assert seen == set(map(tuple, expected))


def test_a_failing_model_stops_the_run() -> None:
    env = make_vec()
    env.bind(bundle(), training=True)
    env.reset()
    for _ in range(2):
        env.step(np.zeros(N, dtype=int))
    critic = env.layer._models["viability"]
    assert critic is not None
    with torch.no_grad():
        critic.critics.biases[0].fill_(np.nan)
    with pytest.raises(ShieldError, match=r"environment 0 at step 2, environment 1 at step 2.*fallback"):
        env.step(np.zeros(N, dtype=int))
    with pytest.raises(ShieldError, match="environment 0 at step 2"):
        env.env_method("action_masks")


def test_a_failing_model_fails_closed() -> None:
    env = make_vec(fallback=1)
    env.bind(bundle(failing=True), training=True)
    env.reset()
    before = np.array(env.get_attr("x"))[:, 0]
    with pytest.warns(UserWarning, match="environment 0 at step 0"):
        *_, infos = env.step(np.array([0, 1, 2]))
    with warnings.catch_warnings():  # Once is enough.
        warnings.simplefilter("error")
        np.testing.assert_array_equal(get_action_masks(env), [[False, True, False]] * N)
        env.step(np.array([0, 1, 2]))
    assert [info["intervened"] for info in infos] == [True, False, True]
    assert [info.get("executed_action") for info in infos] == [1, None, 1]
    assert [info["shield"]["failed"] for info in infos] == [1, 1, 1]
    np.testing.assert_allclose([info["internal"][0] for info in infos], before - 0.05)


def test_what_fails_in_one_environment_stays_there() -> None:
    env = make_vec(fallback=1)
    env.bind(bundle(), training=True)
    env.reset()
    encoded = env.layer._encoded().copy()
    encoded[1] = np.nan
    env.layer._state = encoded
    with pytest.warns(UserWarning, match="environment 1 at step 0"):
        assert env.layer.act(np.zeros(N, dtype=int)).tolist() == [0, 1, 0]


def test_without_models_it_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persist_sb3.state._last_loaded", None)
    env = make_gym()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="lets every action pass"):
        assert not env.step(2)[4]["intervened"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.step(2)


def test_callbacks_that_train_no_critic_are_refused_at_the_first_action() -> None:
    model = PPO("MlpPolicy", make_vec(), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ShieldError, match="ViabilityCallback"):
        model.learn(8, callback=MetricsCallback())


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"threshold": np.nan}, ValueError),
        ({"correction": "repair"}, ValueError),
        ({"intervention_penalty": -1.0}, ValueError),
        ({"min_updates": -1}, ValueError),
        ({"fallback": 3}, RuntimeError),
        ({"fallback": [0, 3]}, RuntimeError),
        ({"fallback": []}, RuntimeError),
        ({"fallback": [[0, 1]]}, RuntimeError),
        ({"fallback": 0.5}, RuntimeError),
        ({"fallback": [[0], [0, 1]]}, RuntimeError),
    ],
)
def test_wrong_parameters(kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(kwargs))):
        make_vec(**kwargs)


# Replay


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "model"
    model = PPO("MlpPolicy", make_vec(min_updates=1), n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    callbacks: list[BaseCallback] = [
        ViabilityCallback(net_arch=[16], learning_starts=32),
        MetricsCallback(log_path=path.parent),
    ]
    model.learn(384, callback=callbacks)
    model.save(path)
    return path.with_suffix(".zip")


def replay(env: VecActionShield) -> list[list[int]]:
    """
    :return: what is executed when 0, 1, 2, 0, ... are proposed
    """
    env.seed(3)
    env.reset()
    executed = []
    for step in range(20):
        proposed = np.full(env.num_envs, step % 3)
        *_, infos = env.step(proposed)
        executed.append([int(info.get("executed_action", step % 3)) for info in infos])
    return executed


SCRIPT = """
import json, sys
from stable_baselines3 import PPO
from tests.test_action_shield import make_vec, replay
PPO.load(sys.argv[1], device="cpu")
print(json.dumps(replay(make_vec(min_updates=1, threshold=float(sys.argv[2])))))
"""


def test_a_fresh_process_decides_the_same(trained: Path) -> None:
    model = PPO.load(trained, device="cpu")
    spec = make_vec().layer.spec
    critic = ViabilityCritic(spec, [16])
    critic.load_state_dict(model.persist.pending["viability"])  # type: ignore[attr-defined]
    # A threshold amid what the critic says, so that it has something to decide.
    heat, time = np.full(12, 0.5), np.arange(12.0)
    battery = 0.8 - 0.05 * time
    states = np.stack([battery, heat, time, -battery, battery, heat], axis=1).astype(np.float32)
    threshold = float(np.median(critic.values(states)[:, :, 0]))
    here = make_vec(min_updates=1, threshold=threshold)
    here.bind({"viability": critic}, training=False)
    expected = replay(here)
    proposed = [[step % 3] * N for step in range(20)]
    assert expected != proposed
    command = [sys.executable, "-W", "error::UserWarning:persist_sb3", "-c", SCRIPT, str(trained), str(threshold)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert json.loads(printed.stdout) == expected


def test_the_loaded_critic_waits_for_nobody(trained: Path) -> None:
    PPO.load(trained, device="cpu")
    env = make_vec(min_updates=1)
    env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.step(np.zeros(N, dtype=int))
    assert env.layer.ready


def other_constraints() -> VecActionShield:
    limits = {**LIMITS, "constraints": ["battery >= 0.3"]}
    return VecActionShield(VecInternalState(DummyVecEnv([Walker]), **limits))


def other_variables() -> VecActionShield:
    limits = {**LIMITS, "dims": ["battery", "warmth"]}
    return VecActionShield(VecInternalState(DummyVecEnv([Walker]), **limits))


def other_observation() -> VecActionShield:
    return VecActionShield(VecInternalState(DummyVecEnv([lambda: Walker(observation="dict")]), **LIMITS))


def other_actions() -> VecActionShield:
    return VecActionShield(VecInternalState(DummyVecEnv([lambda: Walker(action="multidiscrete")]), **LIMITS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_constraints, r"constraints \['battery >= 0.2'\].*\['battery >= 0.3'\]"),
        (other_variables, r"internal \['battery', 'heat'\].*warmth"),
        (other_observation, r"observation Box\[4\].*sight"),
        (other_actions, r"action Discrete\(3\).*MultiDiscrete"),
    ],
)
def test_a_critic_of_another_environment_is_refused(
    trained: Path, make: Callable[[], VecActionShield], message: str
) -> None:
    PPO.load(trained, device="cpu")
    env = make()
    env.reset()
    with pytest.raises(ShieldError, match=message):
        env.step(np.array([env.action_space.sample()]))


def test_metrics_tell_how_often_it_intervened(trained: Path) -> None:
    records = read_episodes(trained.parent / "persist.jsonl")
    assert records and all(record.interventions is not None for record in records)
    assert all(0 <= record.interventions <= record.length for record in records if record.interventions is not None)
