"""Trials of several lives: what the agent sees and is told, and that all else takes a life for an episode."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from persist_sb3.callbacks import MetricsCallback
from persist_sb3.evaluation import evaluate
from persist_sb3.metrics import read_episodes
from persist_sb3.wrappers import VecInternalState, VecTrials
from persist_sb3.wrappers.remake import remake
from tests.learners import Ledger, train_entry
from tests.toys import OBSERVATIONS, Walker

LIMITS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"], "mu": [0.8, 0.5]}


def walkers(observation: str = "box", action: str = "discrete", n: int = 3) -> VecEnv:
    makers: Any = [lambda i=i: Monitor(Walker(observation, action, horizon=10 + 2 * i)) for i in range(n)]
    return VecInternalState(DummyVecEnv(makers), **LIMITS)


def played(env: VecEnv, steps: int) -> list[tuple[Any, ...]]:
    """
    :return: each step of a random agent
    """
    env.action_space.seed(0)
    env.seed(3)
    env.reset()
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(steps)]
    return [(action, *env.step(action)) for action in actions]


def split(observation: Any) -> tuple[Any, np.ndarray]:
    """
    :return: what the environment showed, and what the trial adds
    """
    if isinstance(observation, dict):
        return {key: value for key, value in observation.items() if key != "trial"}, observation["trial"]
    return None, observation


@pytest.mark.parametrize(
    ("observation", "action", "lives"),
    [("box", "discrete", 2), ("box", "box", 3), ("dict", "multidiscrete", 3), ("discrete", "box", 2)],
)
def test_lives_are_joined_and_the_past_is_shown(observation: str, action: str, lives: int) -> None:
    bare, env = walkers(observation, action), VecTrials(walkers(observation, action), lives)
    first = env.reset()
    width = spaces.flatdim(env.action_space) + 2
    count, ends, trials = np.zeros(3, dtype=int), 0, 0
    expected = np.zeros((3, width))
    expected[:, -1] = 1.0
    assert spaces.flatdim(env.observation_space) == spaces.flatdim(OBSERVATIONS[observation]) + width
    np.testing.assert_array_equal(split(first)[1][:, -width:], expected)
    for theirs, ours in zip(played(bare, 60), played(env, 60), strict=True):
        acted, below, rewards, life_over, infos = theirs
        _, shown, own_rewards, dones, own_infos = ours
        np.testing.assert_array_equal(own_rewards, rewards)
        count += life_over
        np.testing.assert_array_equal(dones, life_over & (count % lives == 0))
        assert [info["life_over"] for info in own_infos] == life_over.tolist()
        for slot in range(3):
            past = [*spaces.flatten(env.action_space, acted[slot]), rewards[slot]]
            begins = [0.0] * (width - 1) if dones[slot] else past
            beside, whole = split(
                {key: leaf[slot] for key, leaf in shown.items()} if observation == "dict" else shown[slot]
            )
            np.testing.assert_allclose(whole[-width:], [*begins, life_over[slot]], rtol=1e-6)
            if observation == "dict":
                assert all(np.array_equal(beside[key], below[key][slot]) for key in beside)
            else:
                np.testing.assert_array_equal(whole[:-width], spaces.flatten(OBSERVATIONS[observation], below[slot]))
            if life_over[slot]:
                last = own_infos[slot]["terminal_observation"]
                assert len(spaces.flatten(env.observation_space, last)) == spaces.flatdim(env.observation_space)
                np.testing.assert_allclose(split(last)[1][-width:], [*past, 0.0], rtol=1e-6)
                told = [i["episode"]["l"] for i in (infos[slot], own_infos[slot])]
                assert told[0] == told[1]
        ends, trials = ends + int(life_over.sum()), trials + int(dones.sum())
    assert ends > 10 and trials == sum(count // lives)


class Truth(VecEnvWrapper):
    """Writes down what a step really led to, beneath the trials."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.ends: list[np.ndarray] = []
        self.successors: list[np.ndarray] = []

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observation, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(observation, np.ndarray)
        last = observation.copy()
        for slot in np.flatnonzero(dones):
            last[slot] = infos[slot]["terminal_observation"]
        self.ends.append(dones)
        self.successors.append(last)
        return observation, rewards, dones, infos


def recurrent(env: VecEnv, **kwargs: Any) -> RecurrentPPO:
    small: dict[str, Any] = {"lstm_hidden_size": 8, "net_arch": [], "shared_lstm": True, "enable_critic_lstm": False}
    given: dict[str, Any] = {"n_steps": 32, "batch_size": 96, "n_epochs": 1, "seed": 0, "device": "cpu"} | kwargs
    return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=small, **given)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_life_is_an_episode_to_metrics_and_models(normalized: bool, tmp_path: Path) -> None:
    truth = Truth(walkers())
    trials = VecTrials(truth, 3)
    env = VecNormalize(trials) if normalized else trials
    ledger, model = Ledger(), recurrent(env)
    model.learn(192, callback=[ledger, MetricsCallback(log_path=tmp_path)])
    ends = np.array(truth.ends)
    assert ends.sum() > 10
    np.testing.assert_array_equal(ledger.stack("done"), ends)
    np.testing.assert_allclose(ledger.stack("next_observation")[..., :4], truth.successors, rtol=1e-4, atol=1e-5)
    # A life begins where no other ended: with its own internal variables, which the observation shows.
    np.testing.assert_allclose(ledger.stack("internal"), ledger.stack("observation")[..., :2], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(ledger.stack("terminated") | ledger.stack("truncated"), ends)
    assert ledger.stack("terminated").any() and ledger.stack("truncated").any()
    lengths = [
        [record.length for record in read_episodes(tmp_path / "persist.jsonl") if record.env == i] for i in range(3)
    ]
    for slot, column in enumerate(ends.T):
        assert lengths[slot] == np.diff(np.flatnonzero(column), prepend=-1).tolist()
    # SB3 hears of the third life's end only: there the memory is reset, and the value of what follows is not counted.
    third = ends & (np.cumsum(ends, axis=0) % 3 == 0)
    starts = model.rollout_buffer.episode_starts.reshape(3, 32).T
    np.testing.assert_array_equal(starts[1:], third[-32:-1])
    assert len(model.ep_info_buffer or ()) == ends.sum()


def test_layers_above_take_a_life_for_an_episode() -> None:
    fuel = {"initial": 1.0, "drain": 0.01, "action_cost": [0.0, 0.0, 0.0]}
    limits: dict[str, Any] = {
        "dims": ["fuel"],
        "sources": {"fuel": fuel},
        "constraints": ["fuel >= 0.5"],
        "append": True,
    }
    makers: Any = [partial(Walker, "box", "discrete", 6)] * 2
    env = VecInternalState(VecTrials(DummyVecEnv(makers), 4), **limits)
    env.reset()
    age = np.zeros(2)
    for _, shown, _, _, infos in played(env, 40):
        age += 1
        over = np.array([info["life_over"] for info in infos])
        np.testing.assert_allclose([info["internal"][0] for info in infos], 1.0 - 0.01 * age)
        for slot in np.flatnonzero(over):
            assert infos[slot]["terminal_observation"][-1] == pytest.approx(1.0 - 0.01 * age[slot])
        age[over] = 0
        np.testing.assert_allclose(shown[:, -1], 1.0 - 0.01 * age, rtol=1e-6)


class Watcher:
    """Acts at random, and notes where its memory is reset."""

    def __init__(self) -> None:
        self.starts: list[np.ndarray] = []
        self.generator = np.random.default_rng(0)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> Any:
        self.starts.append(episode_start.copy())
        return self.generator.integers(3, size=len(observation)), state


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_evaluation_counts_lives_and_keeps_the_memory(processes: bool) -> None:
    makers: Any = [partial(Walker, "box", "discrete", 6)] * 2
    venv = SubprocVecEnv(makers) if processes else DummyVecEnv(makers)
    watcher = Watcher()
    env = VecTrials(VecInternalState(venv, **LIMITS), 3)
    episodes = evaluate(watcher, env, 6, seed=0)
    env.close()
    assert [episode.record.env for episode in episodes] == [0, 0, 0, 1, 1, 1]
    assert all(1 <= episode.record.length <= 6 for episode in episodes)
    # One trial each, so that the memory was reset once, but in the one that was over first.
    starts = np.array(watcher.starts)
    assert starts[0].all() and starts[1:].sum() <= 1
    lengths = [sum(episode.record.length for episode in episodes[i : i + 3]) for i in (0, 3)]
    assert len(starts) == max(lengths)


def test_sb3_scores_the_last_life_of_a_trial() -> None:
    env = VecTrials(walkers(n=2), 3)
    lives = evaluate(Watcher(), env, 6, seed=0)
    env.seed(0)
    _, lengths = evaluate_policy(Watcher(), env, n_eval_episodes=2, return_episode_rewards=True)
    assert isinstance(lengths, list)
    assert sorted(lengths) == sorted(lives[i].record.length for i in (2, 5))
    assert sorted(lengths) != sorted(lives[i].record.length for i in (0, 3))


def test_a_second_copy_is_made_in_trials() -> None:
    env = VecTrials(VecInternalState(DummyVecEnv([lambda: gym.make("GridLifeFlat-v0")])), 3)
    copy = remake(VecNormalize(env))
    assert isinstance(copy, VecTrials) and copy.lives == 3


def test_hyperparameter_files_know_them(tmp_path: Path) -> None:
    entry = """
  n_envs: 2
  n_timesteps: 128
  policy: MlpLstmPolicy
  policy_kwargs: {lstm_hidden_size: 8}
  n_steps: 16
  batch_size: 32
  n_epochs: 1
  normalize: true
  vec_env_wrapper: [persist_sb3.wrappers.VecInternalState, persist_sb3.wrappers.VecTrials: {lives: 2}]
  callback: persist_sb3.callbacks.MetricsCallback
"""
    assert train_entry("ppo_lstm", "GridLifeFlat-v0", entry, tmp_path).num_timesteps == 128


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="lives=1 must be at least 2"):
        VecTrials(walkers(), 1)
    with pytest.raises(RuntimeError, match="form trials already"):
        VecTrials(VecTrials(walkers(), 2), 2)
    taken = walkers("dict")
    assert isinstance(taken.observation_space, spaces.Dict)
    taken.observation_space = spaces.Dict({**taken.observation_space.spaces, "trial": spaces.Discrete(2)})
    with pytest.raises(RuntimeError, match="has a key 'trial' already"):
        VecTrials(taken, 2)
    endless = walkers()
    endless.action_space = spaces.Sequence(spaces.Discrete(2))
    with pytest.raises(TypeError, match="cannot show actions"):
        VecTrials(endless, 2)


class Doors(gym.Env[Any, Any]):
    """A life of three steps. The first chooses a door, and behind the right one, always the same, there is a reward."""

    observation_space = spaces.Box(0.0, 3.0, (1,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, right: int) -> None:
        self.right = right

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(self.time == 0 and action == self.right)
        self.time += 1
        return np.full(1, self.time, dtype=np.float32), reward, self.time == 3, False, {}


@pytest.mark.slow
def test_a_memory_of_several_lives_finds_the_right_door() -> None:
    """Without one, a life is as good as a guess: half of the rewards."""
    found = {}
    for lives in (1, 4):
        venv: VecEnv = DummyVecEnv([partial(Doors, i % 2) for i in range(16)])
        env = VecTrials(venv, lives) if lives > 1 else venv
        model = recurrent(env, n_steps=12, batch_size=192, n_epochs=8, learning_rate=0.01, gamma=0.9, ent_coef=0.01)
        model.learn(192 * 40)
        env.seed(0)
        observation, state, starts, rewards = env.reset(), None, np.ones(16, dtype=bool), []
        for _ in range(120):
            action, state = model.predict(observation, state, starts, deterministic=False)  # type: ignore[arg-type]
            observation, reward, starts, _ = env.step(action)
            rewards.append(reward)
        # Life by life, by its number in a trial of four.
        found[lives] = np.array(rewards).reshape(10, 4, 3, 16).sum(axis=2).mean(axis=(0, 2))
    np.testing.assert_allclose(found[1], 0.5, atol=0.15)
    assert found[4][0] == pytest.approx(0.5, abs=0.15)
    assert found[4][1:].min() > 0.9
