"""Evaluation: whole episodes, fairly counted, and what happened in them."""

from collections import Counter
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from persist_sb3.evaluation import Episode, evaluate
from persist_sb3.infos import MissingInfoError
from persist_sb3.wrappers import VecHomeostatReward, VecInternalState
from tests.masked_toy import OneAllowedEnv
from tests.toys import Scripted, Walker


class Constant:
    """A policy that always does the same, and keeps what it was asked."""

    def __init__(self, action: Any = 0) -> None:
        self.action = action
        self.asked: list[dict[str, Any]] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], Any]:
        self.asked.append({"state": state, "episode_start": episode_start, "deterministic": deterministic})
        return np.array([self.action] * len(observation)), (np.array([len(self.asked)]),)


def scripted(*scripts: Any) -> VecInternalState:
    venv = DummyVecEnv([partial(Scripted, np.reshape(rows, (-1, 1)), reward=2.0) for rows in scripts])
    return VecInternalState(venv, dims=["x"], constraints=["x >= 0.2"])


def walkers(num_envs: int, **kwargs: Any) -> VecEnv:
    venv = DummyVecEnv([lambda: Monitor(Walker(**kwargs)) for _ in range(num_envs)])
    return VecInternalState(
        venv, dims=["battery", "heat"], constraints=["battery >= 0.3", "heat in [0.4, 0.6]"], mu=[0.8, 0.5]
    )


LONG, SHORT = [0.5] * 12, [0.5, 0.5, 0.5, 0.1]


def test_each_environment_runs_its_share_however_long_its_episodes() -> None:
    episodes = evaluate(Constant(), scripted(LONG, SHORT, SHORT), 7)
    # Whoever took the episodes that end first would have 1 long one and 6 short ones.
    assert Counter(episode.record.env for episode in episodes) == {0: 2, 1: 2, 2: 3}
    assert [episode.record.length for episode in episodes] == [11, 11, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 1), (3, 5), (5, 5), (12, 4)])
def test_as_many_as_asked_for(episodes: int, num_envs: int) -> None:
    assert len(evaluate(Constant(), scripted(*[SHORT] * num_envs), episodes)) == episodes


def test_what_an_episode_was_like() -> None:
    alive, dead = evaluate(Constant(), scripted([0.9, 0.5, 0.6], [0.9, 0.4, 0.1, 0.3]), 2)
    np.testing.assert_allclose(alive.internal, [[0.5], [0.6]], rtol=1e-6)
    np.testing.assert_allclose(dead.internal, [[0.4], [0.1], [0.3]], rtol=1e-6)
    assert alive.record.survived
    assert alive.record.truncated
    assert (dead.record.violated, dead.record.violated_at, dead.record.violations) == ("x >= 0.2", 2, 1)
    assert dead.record.satisfaction == pytest.approx({"x >= 0.2": 2 / 3})
    assert alive.reward.tolist() == alive.terms["task"].tolist() == [2.0, 2.0]
    assert (dead.record.task_return, dead.record.shaped_return) == (6.0, 6.0)


@pytest.mark.filterwarnings("ignore::persist_sb3.homeostat.PaidToDieWarning")
def test_reward_terms_add_up_to_the_reward() -> None:
    for episode in evaluate(Constant(1), VecHomeostatReward(walkers(3), alive_bonus=0.5, weight=0.7), 6):
        assert set(episode.terms) == {"task", "homeo"}
        np.testing.assert_allclose(sum(episode.terms.values()), episode.reward, rtol=1e-5)
        assert episode.record.reward_terms == pytest.approx({name: sum(r) for name, r in episode.terms.items()})
        # Walker's task reward is the size of the action.
        assert episode.record.task_return == episode.record.length


def test_survival_share_is_that_of_the_traces() -> None:
    episodes = evaluate(Constant(1), walkers(4, horizon=9), 40, seed=3)
    within = [bool((e.internal[:, 0] >= 0.3).all() and (np.abs(e.internal[:, 1] - 0.5) <= 0.1).all()) for e in episodes]
    assert [episode.record.survived for episode in episodes] == within
    assert 0 < sum(within) < 40


def test_lengths_and_returns_are_those_of_sb3s_own_evaluation() -> None:
    model = PPO("MlpPolicy", walkers(3), n_steps=8, batch_size=8, seed=0, device="cpu")
    ours, theirs = walkers(3), walkers(3)
    theirs.seed(11)
    returns, lengths = evaluate_policy(model, theirs, 9, return_episode_rewards=True)
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    episodes = evaluate(model, ours, 9, seed=11)
    assert sorted((e.record.length, e.record.task_return) for e in episodes) == sorted(
        zip(lengths, returns, strict=True)
    )


def same(one: list[Episode], other: list[Episode]) -> bool:
    return [e.internal.tolist() for e in one] == [e.internal.tolist() for e in other]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_seed_decides_everything(deterministic: bool) -> None:
    venv = walkers(3)
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, device="cpu")

    def run(seed: int) -> list[Episode]:
        return evaluate(model, venv, 6, deterministic=deterministic, seed=seed)

    assert same(run(5), run(5))
    assert not same(run(5), run(6))


def test_recurrent_policies_keep_their_states_and_are_told_where_episodes_begin() -> None:
    policy = Constant()
    evaluate(policy, scripted(LONG, SHORT), 2, deterministic=False)
    states = [None if asked["state"] is None else asked["state"][0].item() for asked in policy.asked]
    assert states == [None, *range(1, 11)]
    begins = np.array([asked["episode_start"] for asked in policy.asked])
    assert np.flatnonzero(begins[:, 0]).tolist() == [0]
    assert np.flatnonzero(begins[:, 1]).tolist() == [0, 3, 6, 9]
    assert not any(asked["deterministic"] for asked in policy.asked)


def test_recurrent_ppo_runs_with_another_number_of_environments() -> None:
    model = RecurrentPPO("MlpLstmPolicy", walkers(2), n_steps=8, batch_size=8, device="cpu")
    assert len(evaluate(model, walkers(5), 10)) == 10


def test_masked_policies_get_their_masks() -> None:
    def make() -> VecEnv:
        venv = DummyVecEnv([OneAllowedEnv for _ in range(3)])
        return VecInternalState(venv, dims=["calm"], sources={"calm": "obs[0]"}, constraints=["calm <= 0.5"])

    model = MaskablePPO("MlpPolicy", make(), n_steps=8, batch_size=8, device="cpu")
    # It raises where a forbidden action is taken; without masks, 1 in 16 is allowed.
    assert [episode.record.length for episode in evaluate(model, make(), 6)] == [8] * 6


def test_reward_before_normalisation() -> None:
    venv = VecNormalize(scripted(LONG), training=False)
    venv.ret_rms.var = np.array(100.0)
    (episode,) = evaluate(Constant(), venv, 1)
    assert episode.reward.tolist() == [2.0] * 11


def test_progress_counts_the_episodes() -> None:
    seen: list[int] = []
    evaluate(Constant(), scripted(SHORT, SHORT), 4, progress=seen.append)
    assert seen == [0, 0, 2, 2, 2, 4]


def test_without_episodes() -> None:
    with pytest.raises(ValueError, match="episodes=0 must be at least 1"):
        evaluate(Constant(), scripted(SHORT), 0)


def test_environments_that_declare_nothing() -> None:
    with pytest.raises(RuntimeError, match=r"wrap them in.*VecInternalState"):
        evaluate(Constant(), DummyVecEnv([lambda: gym.make("CartPole-v1")]), 1)


def test_environments_that_publish_nothing() -> None:
    class Mute(Scripted):
        viability = scripted(SHORT).viability

    venv = DummyVecEnv([lambda: Mute(np.zeros((4, 1)), infos=[{"other": 1.0}] * 4)])
    with pytest.raises(MissingInfoError, match=r"\['internal'\] is missing in environment 0"):
        evaluate(Constant(), venv, 1)
