"""MetricsCallback: what it logs and writes, with every algorithm, and that it disturbs nothing."""

import math
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from persist_sb3.callbacks import MetricsCallback, PersistCallback
from persist_sb3.callbacks.metrics import policy_entropy
from persist_sb3.metrics import read_episodes
from persist_sb3.state import PersistState
from persist_sb3.wrappers import HomeostatReward, InternalState, VecInternalState
from tests.learners import Pages
from tests.toys import Walker

ON_POLICY: list[Any] = [PPO, A2C, TRPO, MaskablePPO, RecurrentPPO]
OFF_POLICY: list[Any] = [DQN, QRDQN, SAC, TD3, DDPG, TQC, CrossQ]
CONTINUOUS: list[Any] = [SAC, TD3, DDPG, TQC, CrossQ]
LIMITS: dict[str, Any] = {
    "dims": ["battery", "heat"],
    "constraints": ["battery >= 0.2", "heat in [0.45, 0.56]"],
    "mu": [0.7, 0.5],
    "low": [-0.5, 0.0],
    "high": [1.0, 1.0],
}


class Maskable(Walker):
    def action_masks(self) -> np.ndarray:
        return np.array([True, True, False])


def make_env(folder: Path | None = None, index: int = 0, action: str = "discrete") -> gym.Env[Any, Any]:
    monitored = Monitor(Maskable(action=action), None if folder is None else str(folder / str(index)))
    return HomeostatReward(InternalState(monitored, **LIMITS), alive_bonus=1.5, death_penalty=1.0, weight=0.5)


def make_vec(folder: Path | None = None, n: int = 2, action: str = "discrete") -> DummyVecEnv:
    return DummyVecEnv([partial(make_env, folder, index, action) for index in range(n)])


def make_model(algorithm: Any, env: VecEnv, **more: Any) -> BaseAlgorithm:
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0, **more}
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    if algorithm in ON_POLICY:
        kwargs["n_steps"] = 32
        if algorithm is not A2C:
            kwargs["batch_size"] = 32
        if algorithm is RecurrentPPO:
            kwargs["policy_kwargs"]["lstm_hidden_size"] = 4
    else:
        kwargs |= {"learning_starts": 40, "buffer_size": 300, "batch_size": 8, "train_freq": 8, "gradient_steps": 1}
    model: BaseAlgorithm = algorithm(policy, env, **kwargs)
    return model


def persist(pages: Pages) -> list[dict[str, Any]]:
    found = [{k.removeprefix("persist/"): v for k, v in page.items() if "persist/" in k} for page in pages.pages]
    return [page for page in found if page]


def learn(model: BaseAlgorithm, steps: int, callback: Any, **kwargs: Any) -> list[dict[str, Any]]:
    pages = Pages()
    model.set_logger(Logger(None, [pages]))
    model.learn(steps, callback=callback, **kwargs)
    return persist(pages)


@pytest.mark.parametrize("algorithm", [*ON_POLICY, *OFF_POLICY])
def test_every_algorithm_is_measured(algorithm: Any, tmp_path: Path) -> None:
    env = make_vec(tmp_path, action="box" if algorithm in CONTINUOUS else "discrete")
    pages = learn(make_model(algorithm, env), 256, MetricsCallback(log_freq=64), log_interval=1)
    env.close()
    last = pages[-1]
    expected = {
        "violations", "violations_per_1k_steps", "min_margin", "satisfaction/battery", "satisfaction/heat",
        "reward_terms/task", "reward_terms/homeo", "deaths/battery >= 0.2", "deaths/heat in [0.45, 0.56]",
        "time_to_violation", "survival",
    }  # fmt: skip
    optional = {"time_to_violation_median", "recovery_rate"}
    if algorithm not in (TD3, DDPG):
        expected.add("policy_entropy")
    assert expected <= set(last) <= expected | optional
    assert all(math.isfinite(value) for value in last.values())

    # Monitor, inside all layers, is the witness.
    episodes, witness = read_episodes(tmp_path / "persist.jsonl"), load_results(str(tmp_path))
    assert len(episodes) == len(witness) > 10
    assert sorted(episode.length for episode in episodes) == sorted(witness["l"])
    np.testing.assert_allclose(sorted(e.task_return for e in episodes), sorted(witness["r"]), atol=1e-5)
    for episode in episodes:
        assert sum(episode.reward_terms.values()) == pytest.approx(episode.shaped_return, abs=1e-5)
        assert episode.terminated or episode.length == 12


class Recorder(BaseCallback):
    """Keeps every step as SB3 shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.x: list[np.ndarray] = []
        self.dones: list[np.ndarray] = []
        self.terms: list[list[dict[str, float]]] = []

    def _on_step(self) -> bool:
        self.x.append(np.array([info["internal"] for info in self.locals["infos"]]))
        self.dones.append(self.locals["dones"])
        self.terms.append([info["reward_terms"] for info in self.locals["infos"]])
        return True


def mean_survival(durations: list[tuple[int, bool]]) -> float:
    """Sum over the steps of the chance to survive each one before it."""
    total, survival = 0.0, 1.0
    for step in range(1, max(duration for duration, _ in durations) + 1):
        total += survival
        at_risk = sum(duration >= step for duration, _ in durations)
        survival *= 1 - sum(died and duration == step for duration, died in durations) / at_risk
    return total


def test_logged_figures_are_what_they_say() -> None:
    recorder = Recorder()
    pages = learn(make_model(PPO, make_vec()), 512, [recorder, MetricsCallback(log_freq=1, window=7)])
    assert len(pages) == 512 // 64
    x, dones = np.array(recorder.x), np.array(recorder.dones)
    holds = np.stack([x[..., 0] >= 0.2, (x[..., 1] >= 0.45) & (x[..., 1] <= 0.56)], axis=2)
    margins = np.stack([(x[..., 0] - 0.2) / 0.5, (0.055 - np.abs(x[..., 1] - 0.505)) / 0.05], axis=2)
    deaths = {0: 0, 1: 0}
    durations: list[tuple[int, bool]] = []
    begins = [0, 0]
    for number, page in enumerate(pages):
        rows = slice(32 * number, 32 * (number + 1))
        for t in range(rows.start, rows.stop):
            for slot in np.flatnonzero(dones[t]):
                episode = margins[begins[slot] : t + 1, slot]
                outside = np.flatnonzero((episode < 0).any(axis=1))
                if len(outside):
                    deaths[int(episode[outside[0]].argmin())] += 1
                durations.append((outside[0] + 1, True) if len(outside) else (len(episode), False))
                begins[slot] = t + 1
        assert page["satisfaction/battery"] == pytest.approx(holds[rows, :, 0].mean())
        assert page["satisfaction/heat"] == pytest.approx(holds[rows, :, 1].mean())
        assert page["min_margin"] == pytest.approx(margins[rows].min(), abs=1e-9)
        assert page["violations"] == (~holds[: rows.stop].all(axis=2)).sum()
        assert page["violations_per_1k_steps"] == pytest.approx(1000 * (~holds[rows].all(axis=2)).mean())
        assert (page["deaths/battery >= 0.2"], page["deaths/heat in [0.45, 0.56]"]) == (deaths[0], deaths[1])
        recent = durations[-7:]
        assert page["survival"] == pytest.approx(np.mean([not died for _, died in recent]))
        assert page["time_to_violation"] == pytest.approx(mean_survival(recent))
        means = {
            name: np.mean([terms[name] for step in recorder.terms[rows] for terms in step])
            for name in ("task", "homeo")
        }
        assert page["reward_terms/task"] == pytest.approx(means["task"])
        assert page["reward_terms/homeo"] == pytest.approx(means["homeo"])
    assert sum(deaths.values()) > 10


def parameters(model: BaseAlgorithm) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.policy.state_dict().values()]


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_training_is_the_same_with_and_without(algorithm: Any) -> None:
    action = "box" if algorithm is SAC else "discrete"
    results = []
    for callback in (None, MetricsCallback(log_freq=16)):
        model = make_model(algorithm, make_vec(action=action))
        model.learn(192, callback=callback)
        results.append(parameters(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_counters_survive_a_resume(tmp_path: Path) -> None:
    first = MetricsCallback()
    model = make_model(PPO, make_vec(tmp_path))
    model.learn(256, callback=first)
    model.save(tmp_path / "model.zip")
    model.learn(128, callback=first)  # what happens after the checkpoint is not in it
    episodes = len(read_episodes(tmp_path / "persist.jsonl"))

    resumed, second = (
        PPO.load(tmp_path / "model.zip", env=make_vec(tmp_path), device="cpu"),
        MetricsCallback(log_freq=1),
    )
    pages = learn(resumed, 64, second)
    saved = PersistState.load(tmp_path / "model.zip").pending["metrics"]
    assert saved["violations"] > 0
    lines = read_episodes(tmp_path / "persist.jsonl")
    new = lines[episodes:]
    assert len(new) > 0
    assert second.state_dict()["episodes"] == saved["episodes"] + len(new)
    assert pages[-1]["violations"] >= saved["violations"] + sum(episode.violations for episode in new)
    assert sum(second.state_dict()["deaths"].values()) == sum(saved["deaths"].values()) + sum(
        not episode.survived for episode in new
    )


def test_a_continued_learn_tears_no_episode(tmp_path: Path) -> None:
    model = make_model(PPO, make_vec(tmp_path))
    callback = MetricsCallback()
    for _ in range(4):
        model.learn(64, callback=callback, reset_num_timesteps=False)
    lengths = [episode.length for episode in read_episodes(tmp_path / "persist.jsonl")]
    assert sorted(lengths) == sorted(load_results(str(tmp_path))["l"])

    # Another callback that joins in the middle of episodes leaves these out.
    model.learn(64, callback=MetricsCallback(log_path=tmp_path / "late"), reset_num_timesteps=False)
    late, witness = read_episodes(tmp_path / "late" / "persist.jsonl"), load_results(str(tmp_path))
    missing = len(witness) - len(lengths) - len(late)
    assert 0 < missing <= 2


def test_a_torn_line_is_cut_before_more_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "persist.jsonl"
    model = make_model(PPO, make_vec(tmp_path))
    model.learn(64, callback=MetricsCallback())
    content = path.read_bytes()
    path.write_bytes(content + content[:50])
    model.learn(64, callback=MetricsCallback())
    assert path.read_bytes().startswith(content)
    assert len(read_episodes(path)) > content.count(b"\n")


class Mortal(Walker):
    def step(self, action: Any) -> Any:
        if self.np_random.random() < 0.01:
            raise OSError("the simulator crashed")
        return super().step(action)


def test_a_crash_loses_no_more_than_the_last_steps(tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: InternalState(Monitor(Mortal(), str(tmp_path / "0")), **LIMITS)])
    with pytest.raises(OSError, match="simulator crashed"):
        make_model(PPO, env).learn(10_000, callback=MetricsCallback())
    lengths, witness = [e.length for e in read_episodes(tmp_path / "persist.jsonl")], load_results(str(tmp_path))["l"]
    assert lengths == witness[: len(lengths)].tolist()
    assert sum(witness[len(lengths) :]) < 64 + 12


def test_in_subprocesses(tmp_path: Path) -> None:
    env = VecInternalState(SubprocVecEnv([Walker]), **LIMITS)
    try:
        checkpoints = CheckpointCallback(10_000, str(tmp_path))
        pages = learn(make_model(PPO, env), 128, [MetricsCallback(log_freq=1), checkpoints])
    finally:
        env.close()
    assert len(pages) == 4
    assert len(read_episodes(tmp_path / "persist.jsonl")) > 5


# --- where files go


class Where(PersistCallback):
    """Writes down where it would write."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.found = self.log_dir

    def _on_step(self) -> bool:
        return False


def where(env: VecEnv, *siblings: BaseCallback, **kwargs: Any) -> Path | None:
    callback = Where(**kwargs)
    make_model(PPO, env).learn(64, callback=[callback, *siblings])
    return callback.found


def test_files_go_beside_the_monitor_or_the_models(tmp_path: Path) -> None:
    monitored, models, best = tmp_path / "monitor", tmp_path / "models", tmp_path / "best"
    checkpoints = CheckpointCallback(10_000, str(models))
    evaluation = EvalCallback(make_vec(n=1), best_model_save_path=str(best), eval_freq=10_000)
    assert where(make_vec()) is None
    assert where(make_vec(monitored)) == monitored
    assert where(VecNormalize(make_vec(monitored)), checkpoints) == monitored
    assert where(make_vec(monitored), log_path=best) == best
    assert where(make_vec(), checkpoints, evaluation) == models
    assert where(make_vec(), evaluation, checkpoints) == best
    unmonitored = DummyVecEnv([lambda: InternalState(Walker(), **LIMITS)])
    assert where(unmonitored) is None
    assert where(VecMonitor(unmonitored, str(monitored / "all"))) == monitored


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert learn(make_model(PPO, make_vec()), 128, MetricsCallback(log_freq=1))
    assert os.listdir(tmp_path) == []


def test_a_constructor_does_nothing(tmp_path: Path) -> None:
    MetricsCallback(log_path=tmp_path / "never")
    assert os.listdir(tmp_path) == []


def test_the_end_may_come_twice(tmp_path: Path) -> None:
    callback = MetricsCallback()
    model = make_model(PPO, make_vec(tmp_path))
    model.learn(64, callback=callback)
    callback.on_training_end()
    before = len(read_episodes(tmp_path / "persist.jsonl"))
    model.learn(64, callback=callback)
    assert len(read_episodes(tmp_path / "persist.jsonl")) > before


# --- where figures go


def test_tensorboard_gets_them(tmp_path: Path) -> None:
    model = make_model(PPO, make_vec(), tensorboard_log=str(tmp_path))
    model.learn(128, callback=MetricsCallback(log_freq=1))
    events = EventAccumulator(str(tmp_path / "PPO_1")).Reload()
    tags = events.Tags()["scalars"]
    assert {"persist/survival", "persist/deaths/battery >= 0.2", "persist/satisfaction/heat"} <= set(tags)
    assert [event.step for event in events.Scalars("persist/violations")] == [64, 128]


def test_long_names_do_not_break_the_console(tmp_path: Path) -> None:
    limits = {**LIMITS, "constraints": [f"battery + 0.5*heat + 0.25*battery >= {limit}" for limit in (0.2, 0.3)]}
    env = DummyVecEnv([lambda: InternalState(Walker(), **limits)])
    model, pages, console = make_model(PPO, env), Pages(), (tmp_path / "console").open("w+")
    model.set_logger(Logger(None, [HumanOutputFormat(console), pages]))
    model.learn(64, callback=MetricsCallback(log_freq=1))
    console.seek(0)
    assert "time_to_violation" in console.read()
    assert sum("deaths/" in key for key in persist(pages)[0]) == 2
    console.close()


# --- entropy


def test_entropy_of_a_policy_is_the_textbooks() -> None:
    model = make_model(PPO, make_vec(), learning_rate=0.0)
    with torch.no_grad():
        model.policy.action_net.weight.zero_()  # type: ignore[union-attr, operator]
        model.policy.action_net.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())  # type: ignore[union-attr, operator]
    page = learn(model, 1024, MetricsCallback(log_freq=1024))[-1]
    entropy = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    assert page["policy_entropy"] == pytest.approx(entropy, abs=0.15)  # 64 actions a rollout

    model = make_model(MaskablePPO, make_vec(), learning_rate=0.0)
    page = learn(model, 64, MetricsCallback(log_freq=1))[-1]
    assert page["policy_entropy"] == pytest.approx(math.log(2), abs=0.05)  # the third action is masked


def test_entropy_of_epsilon_greedy() -> None:
    model = make_model(DQN, make_vec())
    for epsilon, probabilities in ((0.0, [1.0]), (1.0, [1 / 3] * 3), (0.3, [0.8, 0.1, 0.1])):
        model.exploration_rate = epsilon  # type: ignore[attr-defined]
        assert policy_entropy(model) == pytest.approx(-sum(p * math.log(p) for p in probabilities))


def test_entropy_of_a_squashed_gaussian() -> None:
    model = make_model(SAC, VecNormalize(make_vec(action="box")), learning_starts=1000)
    model.learn(240)
    actor: Any = model.policy.actor
    with torch.no_grad():
        for layer, mean in ((actor.mu, 0.3), (actor.log_std, -1.0)):
            layer.weight.zero_()
            layer.bias.fill_(mean)
    # Independently: the entropy of tanh(z) is that of z plus the mean of log |d tanh(z)/dz|, two actions.
    z = np.random.default_rng(0).normal(0.3, math.exp(-1.0), 200_000)
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) - 1.0 + np.log(1 - np.tanh(z) ** 2).mean())
    state = torch.get_rng_state()
    assert policy_entropy(model) == pytest.approx(entropy, abs=0.2)
    assert torch.equal(torch.get_rng_state(), state)


# --- wiring


def test_an_environment_without_constraints_is_refused() -> None:
    class Bare(Walker):
        pass

    with pytest.raises(RuntimeError, match=r"MetricsCallback needs 'viability', .*InternalState\(dims=\.\.\., constr"):
        make_model(PPO, DummyVecEnv([Bare])).learn(64, callback=MetricsCallback())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"log_freq": 0}, "log_freq=0 must be at least 1"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"recovery_horizon": 0}, "recovery_horizon=0 must be at least 1"),
        ({"near": 0.0}, "near=0.0 and core=0.25 must satisfy"),
        ({"near": 0.3}, "near=0.3 and core=0.25 must satisfy"),
    ],
)
def test_parameters_out_of_range_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetricsCallback(**kwargs)


class Impatient(gym.Wrapper[Any, Any, Any, Any]):
    """Ends episodes where no Monitor sees it."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, _, info = self.env.step(action)
        return observation, reward, terminated, self.unwrapped.time >= 5, info  # type: ignore[attr-defined]


def test_ends_that_the_monitor_misses_are_warned_of() -> None:
    def hidden() -> gym.Env[Any, Any]:
        return Impatient(InternalState(Monitor(Walker()), **LIMITS))

    def seen() -> gym.Env[Any, Any]:
        return Monitor(hidden())

    with pytest.warns(UserWarning, match="environment 0 ended an episode that its Monitor did not see"):
        make_model(PPO, DummyVecEnv([hidden])).learn(32, callback=MetricsCallback())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for make in (seen, lambda: InternalState(Walker(), **LIMITS)):
            make_model(PPO, DummyVecEnv([make])).learn(32, callback=MetricsCallback())
