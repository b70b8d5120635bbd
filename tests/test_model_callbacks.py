"""The callbacks of the internal and the world model: what they learn from, log, and leave alone."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.callbacks import InternalModelCallback, WorldModelCallback
from persist_sb3.models.base import rebuild
from persist_sb3.models.internal import InternalModel
from persist_sb3.models.world import WorldModel
from persist_sb3.state import last_loaded
from persist_sb3.wrappers import VecInternalState, VecPartialObservation
from tests.learners import Pages
from tests.toys import Walker

LIMITS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"]}
SMALL: dict[str, Any] = {"net_arch": [16], "members": 2, "learning_starts": 64, "batch_size": 32, "train_freq": 2}


def make_model(
    observation: str = "box", action: str = "discrete", degraded: bool = False, **more: Any
) -> BaseAlgorithm:
    env: Any = DummyVecEnv([partial(Walker, observation, action)] * 4)
    env = VecInternalState(env, **LIMITS, append=observation in ("box", "dict"))
    if degraded:
        env = VecPartialObservation(env, noise={"heat": 0.1})
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    kwargs: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "n_epochs": 1}
    return PPO(policy, env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, **kwargs | more)


def learn(model: BaseAlgorithm, callbacks: Any, steps: int) -> list[dict[str, Any]]:
    pages = Pages()
    model.set_logger(Logger(None, [pages]))
    model.learn(steps, callback=callbacks, log_interval=1)
    return pages.pages


def part(model: BaseAlgorithm, name: str) -> Any:
    return model.persist.parts[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("observation", ["box", "dict", "discrete"])
@pytest.mark.parametrize("action", ["discrete", "multidiscrete", "box"])
def test_the_walker_is_learned(observation: str, action: str) -> None:
    model = make_model(observation, action)
    callbacks = [InternalModelCallback(**SMALL), WorldModelCallback(**SMALL)]
    row = learn(model, callbacks, 1200)[-1]
    # The battery follows from the action; the heat is noise of deviation 0.02.
    assert row["persist/internal_model/error_ratio/battery"] < 0.6
    assert row["persist/internal_model/error_ratio/heat"] == pytest.approx(1.0, abs=0.1)
    assert 0.5 < row["persist/internal_model/coverage/heat"] <= 1.0
    assert row["persist/world_model/error_ratio"] < 1.1
    assert np.isfinite(
        [
            row[f"persist/{name}/{key}"]
            for name in ("internal_model", "world_model")
            for key in ("loss", "nll", "disagreement")
        ]
    ).all()


def test_training_is_the_same_with_and_without() -> None:
    def weights(callbacks: Any) -> list[torch.Tensor]:
        torch.manual_seed(7)
        model = make_model()
        model.learn(512, callback=callbacks)
        global_state: Any = np.random.get_state()  # noqa: NPY002
        return [*model.policy.parameters(), torch.get_rng_state(), torch.tensor(global_state[1])]

    plain = weights(None)
    watched = weights([InternalModelCallback(**SMALL), WorldModelCallback(**SMALL)])
    assert all(torch.equal(*pair) for pair in zip(plain, watched, strict=True))


def test_what_is_tested_was_not_trained_on() -> None:
    tested: list[np.ndarray] = []
    trained: list[np.ndarray] = []

    class Watched(InternalModelCallback):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            add = self._tests.add

            def note(state: Any, *more: Any) -> Any:
                assert not {row.tobytes() for row in state} & {row.tobytes() for rows in trained for row in rows}
                tested.append(state)
                return add(state, *more)

            self._tests.add = note  # type: ignore[assignment, method-assign]

        def _update(self, batch: Any) -> Any:
            trained.append(self._inputs(batch[0])[0])
            return super()._update(batch)

    # One rollout, so that the sums are not begun anew.
    make_model(n_steps=128, action="box").learn(512, callback=Watched(**SMALL))
    assert sum(map(len, tested)) > 400 and len(trained) > 50


def test_a_transition_counts_the_same_for_a_member_each_time() -> None:
    counts: dict[bytes, np.ndarray] = {}

    class Watched(InternalModelCallback):
        def _update(self, batch: Any) -> Any:
            for row, count in zip(self._inputs(batch[0])[0], batch[1], strict=True):
                assert (counts.setdefault(row.tobytes(), count) == count).all()
            return super()._update(batch)

    make_model(action="box").learn(1024, callback=Watched(**SMALL))
    drawn = np.array(list(counts.values()))
    assert len(drawn) > 300
    np.testing.assert_allclose(drawn.mean(axis=0), 1.0, atol=0.2)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.2


def test_executed_actions_and_true_successors_are_learned_from() -> None:
    class Watched(WorldModelCallback):
        def _update(self, batch: Any) -> Any:
            rows = batch[0]
            # The observation shows the time: never a step back to an episode's start.
            assert (rows.next_observation[:, 2] == rows.observation[:, 2] + 1).all()
            rows.executed_action[:] = 1
            _, action = self._inputs(rows)
            assert (action == [0.0, 1.0, 0.0]).all()
            return super()._update(batch)

    make_model().learn(256, callback=Watched(**SMALL))


def test_shown_variables_are_found_and_checked() -> None:
    # Columns 0 to 3 are the walker's own observation; the variables are appended.
    for degraded, faithful in ((False, [True, True]), (True, [True, False])):
        model = make_model(degraded=degraded)
        model.learn(256, callback=WorldModelCallback(**SMALL))
        world = part(model, "world_model")
        assert world.shown == [[4, 0], [5, 1]]
        assert world.faithful.tolist() == faithful


def test_rides_in_the_zip_and_resumes(tmp_path: Any) -> None:
    model = make_model()
    model.learn(256, callback=[InternalModelCallback(**SMALL), WorldModelCallback(**SMALL)])
    model.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", env=model.get_env())
    loaded = last_loaded()
    assert loaded is not None
    for name, kind in (("internal_model", InternalModel), ("world_model", WorldModel)):
        trained = part(model, name)
        state, action = np.ones((3, trained.spec.state_dim), np.float32), np.eye(3, dtype=np.float32)
        rebuilt = rebuild(loaded.pending[name], trained.spec, kind)
        np.testing.assert_array_equal(rebuilt.moments(state, action)[0], trained.moments(state, action)[0])
    callback = InternalModelCallback(**SMALL)
    again.learn(128, callback=callback, reset_num_timesteps=False)
    assert callback.updates > part(model, "internal_model_training").updates


def test_off_policy_and_seeded() -> None:
    def train(seed: int) -> Any:
        env = VecInternalState(DummyVecEnv([partial(Walker, "box", "box")] * 2), **LIMITS)
        model = SAC("MlpPolicy", env, seed=0, learning_starts=50, batch_size=8, policy_kwargs={"net_arch": [8]})
        model.learn(200, callback=InternalModelCallback(seed=seed, **SMALL))
        return part(model, "internal_model").ensemble.weights[0]

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="beta=2"):
        InternalModelCallback(beta=2.0)
    with pytest.raises(ValueError, match="buffer_size=0"):
        WorldModelCallback(buffer_size=0)
    model = PPO("MlpPolicy", DummyVecEnv([Walker]), n_steps=8, batch_size=8)
    with pytest.raises(RuntimeError):
        model.learn(8, callback=InternalModelCallback())
