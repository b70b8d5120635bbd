"""BeliefCallback: what it learns, from what, and what it keeps."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from persist_sb3.callbacks import BeliefCallback, InternalModelCallback
from persist_sb3.wrappers import (
    BeliefError,
    BeliefState,
    InternalState,
    PartialObservation,
    VecBeliefState,
    VecInternalState,
    VecPartialObservation,
)
from tests.test_belief_state import EKF, INTERNAL, SPARSE
from tests.test_model_callbacks import learn, part
from tests.toys import Walker

SMALL: dict[str, Any] = {
    "memory": 16,
    "net_arch": [16],
    "length": 8,
    "burn_in": 2,
    "learning_starts": 64,
    "batch_size": 16,
    "train_freq": 4,
    "learning_rate": 3e-3,
}
SEEN: dict[str, Any] = {"noise": {"battery": 0.05}, "dropout": {"battery": 0.8}}


def make_env(n: int = 4, observation: str = "discrete", action: str = "discrete", **belief: Any) -> Any:
    env: Any = VecInternalState(DummyVecEnv([partial(Walker, observation, action)] * n), **INTERNAL)
    return VecBeliefState(VecPartialObservation(env, **SEEN), **belief)


def make_model(env: Any, **more: Any) -> PPO:
    kwargs: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
    policy = "MultiInputPolicy" if "Dict" in str(env.observation_space) else "MlpPolicy"
    return PPO(policy, env, seed=0, device="cpu", **kwargs | more)


def test_it_learns_more_than_was_last_seen() -> None:
    env = make_env()
    model = make_model(env)
    rows = learn(model, BeliefCallback(**SMALL), 4000)[-8:]
    logged = {key: np.mean([row[f"persist/belief/{key}"] for row in rows]) for key in ("coverage/battery", "nees")}
    assert 0.8 < logged["coverage/battery"] < 0.98
    assert 0.5 < logged["nees"] < 2.0
    rng = np.random.default_rng(0)
    observation = env.reset()
    last = np.full(4, 0.8)
    errors: list[Any] = []
    for _ in range(300):
        observation, _, dones, infos = env.step(rng.integers(3, size=4))
        truth = np.array([info["internal"][0] for info in infos])
        shown = observation.copy()
        for slot in np.flatnonzero(dones):
            shown[slot] = infos[slot]["terminal_observation"]
        last = np.where(shown[:, -4] != 0.0, shown[:, -4], last)
        errors.append([(shown[:, -2] - truth) ** 2, (last - truth) ** 2])
        last[dones] = np.where(observation[dones, -4] != 0.0, observation[dones, -4], 0.8)
    believed, seen = np.sqrt(np.mean(errors, axis=(0, 2)))
    # The mean of an episode's start is known to 0.058, and a sighting to 0.05.
    assert believed < 0.06
    assert believed < 0.5 * seen
    # What was logged is what the agent was shown.
    assert rows[-1]["persist/belief/rmse/battery"] == pytest.approx(believed, abs=0.015)


@pytest.mark.parametrize(("observation", "action"), [("box", "box"), ("dict", "multidiscrete")])
def test_stretches_follow_one_episode_with_its_memory(observation: str, action: str) -> None:
    env = make_env(3, observation, action)
    callback = BeliefCallback(**{**SMALL, "learning_starts": 10**6})
    make_model(env).learn(600, callback=callback)
    spec, k = callback.spec, callback.actor
    # Where the Walker tells the time.
    column = 2 if observation == "box" else 3 + 2 + 2
    assert len(callback.store) > 500
    starts = 0
    for _ in range(10):
        batch = callback._sample()
        # Three digits, so that the padding shows.
        time = np.rint(batch.observation[:, :, column]).astype(int)
        for row in range(len(time)):
            # The first step counts only where an episode begins; and what is drawn is one stretch.
            own = int((np.diff(time[row]) == 1).sum()) + 1
            np.testing.assert_array_equal(time[row, :own], time[row, 0] + np.arange(own))
            begins = time[row, 0] == 0
            starts += begins
            assert (batch.memory[row] == 0.0).all() == begins
            assert (batch.action[row, 0] == 0.0).all() == begins or action == "box"
            expected = np.r_[np.full(2, float(begins)), np.ones(own - 2), np.zeros(9 - own)][:9]
            np.testing.assert_array_equal(batch.weight[row], expected)
            # Running on from the stored memory gives the next stored memories.
            memory = batch.memory[row : row + 1]
            truth = batch.truth[row, :own, 0]
            assert (np.diff(truth) < 0.0).all()
            assert np.isfinite(k.advance(batch.observation[row, :1], batch.action[row, :1], memory)[0]).all()
    assert starts > 3
    assert spec.action_dim == batch.action.shape[2]


def test_the_stored_memory_is_that_of_the_layer() -> None:
    env = make_env(3)
    torch.manual_seed(0)

    class Compared(BeliefCallback):
        rows = 0

        def _on_step(self) -> bool:
            held = env.layer._estimator
            before = None if held is None else held._memory.copy()
            going = super()._on_step()
            if before is not None and self.learning_starts == 10**6 and not self.locals["dones"].any():
                # One observation behind: bring it up to the layer's.
                flat = self.actor.seen(self.locals["new_obs"])
                memory, _, _ = self.actor.advance(flat, self._action, self._recurrent)
                np.testing.assert_allclose(memory, before, atol=1e-5)
                self.rows += 1
            return going

    callback = Compared(**SMALL)
    model = make_model(env)
    model.learn(200, callback=callback)  # trained
    callback.learning_starts = 10**6  # and from here on fixed
    callback.rows = 0
    model.learn(200, callback=callback)
    assert callback.rows > 20


def test_the_model_resumes_with_the_agent(tmp_path: Path) -> None:
    model = make_model(make_env())
    model.learn(512, callback=BeliefCallback(**SMALL))
    first = part(model, "belief")
    steps = int(first.updates)
    assert steps > 15
    model.save(tmp_path / "agent")

    again = PPO.load(tmp_path / "agent", make_env(), device="cpu")
    again.learn(128, callback=BeliefCallback(**SMALL), reset_num_timesteps=False)
    resumed = part(again, "belief")
    assert steps < int(resumed.updates) < steps + 30
    assert again.persist.parts["belief_training"].updates == int(resumed.updates)  # type: ignore[attr-defined]

    # Without callbacks, a replay takes it from the zip; it is what it was.
    PPO.load(tmp_path / "agent")
    bound, replayed = make_env(), make_env()
    bound.bind({"belief": first}, training=False)
    for env in (bound, replayed):
        env.seed(5)
        env.reset()
        env.step(np.zeros(4, int))
    for _ in range(30):
        one, *_ = bound.step(np.ones(4, int))
        two, *_ = replayed.step(np.ones(4, int))
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_worker_processes_see_what_is_trained() -> None:
    def make() -> Any:
        return BeliefState(PartialObservation(InternalState(Walker("discrete"), **INTERNAL), **SPARSE))

    env = SubprocVecEnv([make] * 2, start_method="fork")
    model = make_model(env)
    row = learn(model, BeliefCallback(**SMALL), 2000)[-1]
    env.close()
    # Beliefs that stayed at the prior would have a deviation of 0.29.
    assert row["persist/belief/rmse/battery"] < 0.15


def test_the_learned_dynamics_carry_a_kalman_filter() -> None:
    kwargs = {key: value for key, value in EKF.items() if key != "dynamics"} | {"process_noise": 0.005}
    env = make_env(dynamics="internal_model", **kwargs)
    assert env.belief_part == "internal_model"
    model = make_model(env)
    internal = InternalModelCallback(net_arch=[16], members=2, learning_starts=64, batch_size=32, train_freq=2)
    model.learn(1500, callback=internal)
    observation = env.reset()
    np.testing.assert_allclose(observation[:, -1].max(), 0.06**2, rtol=1e-3)
    errors, coverage = [], []
    for _ in range(200):
        observation, _, dones, infos = env.step(np.ones(4, int))
        truth = np.array([info["internal"][0] for info in infos])[~dones]
        error = observation[~dones, -2] - truth
        errors.append(np.mean(error**2))
        coverage.append(np.mean(np.abs(error) <= 1.645 * np.sqrt(observation[~dones, -1])))
    assert np.sqrt(np.mean(errors)) < 0.06
    assert 0.75 < np.mean(coverage) <= 1.0


def test_wrong_wiring_stops_the_training_at_its_start() -> None:
    plain = VecInternalState(DummyVecEnv([Walker]), **INTERNAL)
    with pytest.raises(RuntimeError, match="no layer uses"):
        make_model(plain).learn(64, callback=BeliefCallback(**SMALL))
    with pytest.raises(RuntimeError, match="'ekf': leave the callback out"):
        make_model(make_env(**EKF)).learn(64, callback=BeliefCallback(**SMALL))
    with pytest.raises(BeliefError, match=r"add .*BeliefCallback"):
        make_model(make_env()).learn(64, callback=InternalModelCallback(net_arch=[4], members=1))
    make_model(make_env(**EKF)).learn(64)  # Known dynamics need no callback.


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta": 1.5}, "beta=1.5"),
        ({"burn_in": 8, "length": 8}, "burn_in=8"),
        ({"memory": 0}, "memory=0"),
        ({"net_arch": [0]}, "net_arch="),
        ({"buffer_size": 0}, "buffer_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_wrong_parameters_are_refused(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BeliefCallback(**kwargs)
