"""The transition store says of every algorithm what its environments know to have happened."""

from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EveryNTimesteps
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from persist_sb3.batch import add_batch_axis, take, tree_map
from persist_sb3.buffers import Transitions, TransitionStore, concatenate
from persist_sb3.callbacks import PersistCallback

ON_POLICY: list[Any] = [PPO, A2C, TRPO, MaskablePPO, RecurrentPPO]
DISCRETE: list[Any] = [*ON_POLICY, DQN, QRDQN]
CONTINUOUS: list[Any] = [PPO, A2C, TRPO, RecurrentPPO, SAC, TD3, DDPG, TQC, CrossQ]
HORIZON = 9


class Ledger(gym.Env[Any, Any]):
    """Writes down every transition. It dies at random, and executes the opposite of every third action."""

    def __init__(self, continuous: bool = False, nested: bool = False) -> None:
        self.action_space = spaces.Box(-1.0, 3.0, (2,), np.float32) if continuous else spaces.Discrete(3)
        sight = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.observation_space = spaces.Dict({"a": sight, "b": sight}) if nested else sight
        self.nested = nested
        self.rows: list[dict[str, Any]] = []
        self.omit: set[str] = set()

    def action_masks(self) -> np.ndarray:
        return np.ones(3, dtype=bool)

    def _observe(self) -> Any:
        a, b = self.np_random.uniform(-1.0, 1.0, (2, 3)).astype(np.float32)
        self.x = self.np_random.normal(size=2)
        self.observation = {"a": a, "b": b} if self.nested else a
        return self.observation

    def _info(self, **more: Any) -> dict[str, Any]:
        return {key: value for key, value in {"internal": self.x, **more}.items() if key not in self.omit}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        task, cost = (float(value) for value in self.np_random.uniform(size=2))
        executed = {} if self.time % 3 else {"executed_action": 2 - np.array(action)}
        row: dict[str, Any] = {"observation": self.observation, "internal": self.x, "action": np.array(action)}
        row |= {"executed_action": row["action"], **executed, "cost": cost, "reward": task + 0.5}
        row |= {"next_observation": self._observe(), "next_internal": self.x, "terms": {"task": task, "more": 0.5}}
        row["terminated"] = self.np_random.random() < 0.1
        row["truncated"] = self.time == HORIZON and not row["terminated"]
        row["done"] = row["terminated"] or row["truncated"]
        self.rows.append(row)
        info = self._info(cost=cost, reward_terms=dict(row["terms"]), **executed)
        return row["next_observation"], row["reward"], row["terminated"], row["truncated"], info


class Reader(PersistCallback):
    """Keeps what it reads."""

    def __init__(self, capacity: int = 0) -> None:
        super().__init__()
        self.capacity = capacity
        self.steps: list[Transitions] = []

    def _on_training_start(self) -> None:
        self.store.reserve(self.capacity)
        super()._on_training_start()

    def _on_step(self) -> bool:
        self.steps.append(self.store.read(self.locals))
        return super()._on_step()


def make_model(algorithm: Any, env: VecEnv) -> BaseAlgorithm:
    nested = isinstance(env.observation_space, spaces.Dict)
    policy = "MultiInputPolicy" if nested else "MlpPolicy"
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [4]}, "device": "cpu", "seed": 0}
    if algorithm in ON_POLICY:
        kwargs["n_steps"] = 8
        if algorithm is not A2C:
            kwargs["batch_size"] = 8
        if algorithm is RecurrentPPO:
            policy = policy.replace("Policy", "LstmPolicy")
            kwargs["policy_kwargs"]["lstm_hidden_size"] = 4
    else:
        kwargs |= {"learning_starts": 20, "buffer_size": 100, "batch_size": 4, "train_freq": 2}
    model: BaseAlgorithm = algorithm(policy, env, **kwargs)
    return model


def make_ledgers(n: int = 2, **kwargs: Any) -> tuple[list[Ledger], DummyVecEnv]:
    ledgers = [Ledger(**kwargs) for _ in range(n)]
    return ledgers, DummyVecEnv([partial(lambda env: env, env) for env in ledgers])


def assert_read(ledgers: list[Ledger], steps: list[Transitions], tolerance: float = 1e-6) -> None:
    for slot, ledger in enumerate(ledgers):
        assert len(ledger.rows) == len(steps)
        for row, step in zip(ledger.rows, steps, strict=True):
            for name, value in row.items():
                read = take(getattr(step, name), np.array([slot]))
                tree_map(partial(np.testing.assert_allclose, atol=tolerance), add_batch_axis(value), read)


@pytest.mark.parametrize("algorithm", DISCRETE)
def test_reads_discrete_algorithms(algorithm: Any) -> None:
    ledgers, env = make_ledgers(nested=algorithm in (RecurrentPPO, QRDQN))
    reader = Reader()
    make_model(algorithm, env).learn(48, callback=reader)
    assert sum(step.done.sum() for step in reader.steps) >= 4
    assert_read(ledgers, reader.steps)


@pytest.mark.parametrize("algorithm", CONTINUOUS)
def test_reads_continuous_algorithms(algorithm: Any) -> None:
    ledgers, env = make_ledgers(continuous=True, nested=algorithm is SAC)
    reader = Reader()
    make_model(algorithm, env).learn(48, callback=reader)
    assert_read(ledgers, reader.steps)


@pytest.mark.parametrize("algorithm", [PPO, SAC])
@pytest.mark.parametrize("nested", [False, True])
def test_reads_through_normalisation(algorithm: Any, nested: bool) -> None:
    ledgers, env = make_ledgers(continuous=True, nested=nested)
    reader = Reader()
    # The last observation of an episode comes back through its normalisation.
    make_model(algorithm, VecNormalize(env, clip_obs=1e6)).learn(48, callback=reader)
    assert_read(ledgers, reader.steps, tolerance=1e-4)


def test_around_a_normalisation_it_sees_what_the_policy_sees() -> None:
    _, env = make_ledgers()
    reader = Reader()
    model = make_model(PPO, VecFrameStack(VecNormalize(env), 2))
    model.learn(16, callback=reader)
    for before, after in zip(reader.steps, reader.steps[1:], strict=False):
        assert before.next_observation.shape == (2, 6)
        np.testing.assert_array_equal(before.next_observation[~before.done], after.observation[~before.done])


def test_everyone_gets_the_same() -> None:
    _, env = make_ledgers()
    first, second = Reader(), Reader()
    make_model(PPO, env).learn(16, callback=[first, second])
    assert first.store is second.store
    assert all(a is b for a, b in zip(first.steps, second.steps, strict=True))


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_goes_on_between_two_learns(algorithm: Any) -> None:
    ledgers, env = make_ledgers()
    model, reader = make_model(algorithm, env), Reader()
    for total in (16, 20, 32):
        model.learn(total, callback=reader, reset_num_timesteps=False)
    assert reader.store.steps == len(reader.steps)
    assert_read(ledgers, reader.steps)

    other = Reader()
    model.learn(16, callback=other)  # resets the environments
    assert other.store.steps == len(other.steps)
    assert_read(ledgers, reader.steps + other.steps)


def test_models_share_nothing() -> None:
    readers = [Reader(), Reader()]
    for reader in readers:
        make_model(PPO, make_ledgers()[1]).learn(8, callback=reader)
    assert readers[0].store is not readers[1].store


# --- memory


def keys(transitions: Transitions) -> list[tuple[float, ...]]:
    """Something that tells every transition apart, of all that is kept of it."""
    leaves = [transitions.reward, transitions.internal[:, 0], transitions.next_internal[:, 0]]
    leaves += [transitions.observation["a"][:, 0], transitions.next_observation["b"][:, 0], transitions.terms["task"]]
    return list(zip(*(leaf.tolist() for leaf in leaves), strict=True))


def test_memory_keeps_the_last_transitions() -> None:
    _, env = make_ledgers(nested=True)
    small, large = Reader(capacity=7), Reader(capacity=21)
    make_model(PPO, env).learn(80, callback=[small, large])
    store = small.store
    assert (store.capacity, len(store)) == (21, 21)
    everything = [key for step in small.steps for key in keys(step)]
    sample = store.sample(2000, np.random.default_rng(0))
    assert len(sample) == 2000
    assert set(keys(sample)) == set(everything[-21:])
    again = store.sample(2000, np.random.default_rng(0))
    assert keys(again) == keys(sample)
    frequencies = np.unique(sample.reward, return_counts=True)[1] / 2000
    np.testing.assert_allclose(frequencies, 1 / 21, atol=0.03)


def test_memory_grows_and_forgets_nothing() -> None:
    _, env = make_ledgers(nested=True)
    model, small, large = make_model(PPO, env), Reader(capacity=6), Reader(capacity=14)
    model.learn(16, callback=small, reset_num_timesteps=False)
    model.learn(16, callback=[small, large], reset_num_timesteps=False)
    everything = [key for step in small.steps for key in keys(step)]
    assert set(keys(small.store.sample(500, np.random.default_rng(0)))) == set(everything[-14:])
    small.store.reserve(40)
    assert set(keys(small.store.sample(500, np.random.default_rng(0)))) == set(everything[-14:])


def test_a_capacity_below_one_step_keeps_one_step() -> None:
    _, env = make_ledgers(n=4, nested=True)
    reader = Reader(capacity=3)
    make_model(PPO, env).learn(32, callback=reader)
    assert set(keys(reader.store.sample(100, np.random.default_rng(0)))) == set(keys(reader.steps[-1]))


def test_nothing_to_sample() -> None:
    with pytest.raises(RuntimeError, match=r"no transition is kept: call reserve\(capacity\) first"):
        TransitionStore().sample(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="capacity=-1 must not be negative"):
        TransitionStore().reserve(-1)


def test_recall_counts_back_from_the_newest() -> None:
    _, env = make_ledgers(nested=True)
    model, small, large = make_model(PPO, env), Reader(capacity=6), Reader(capacity=14)
    model.learn(16, callback=small, reset_num_timesteps=False)
    for capacity in (6, 14):
        everything = [key for step in small.steps for key in keys(step)]
        store = small.store
        assert store.written == len(everything)
        assert (store.capacity, len(store)) == (capacity, capacity)
        recalled = store.recall(np.arange(len(store)))
        assert keys(recalled) == everything[::-1][:capacity]
        model.learn(16, callback=[small, large], reset_num_timesteps=False)


# --- demonstrations


def record(n: int = 2, steps: int = 24, **kwargs: Any) -> Transitions:
    """Transitions of another run."""
    _, env = make_ledgers(n, **kwargs)
    reader = Reader()
    make_model(PPO, env).learn(steps, callback=reader)
    return concatenate(reader.steps)


def test_demonstrations_are_kept_beside_the_ring_for_good() -> None:
    first, second = record(nested=True), record(nested=True, steps=16)
    model, reader = make_model(PPO, make_ledgers(nested=True)[1]), Reader(capacity=10)
    model.learn(16, callback=reader)
    generator = np.random.default_rng(0)
    for demonstrations in (first, second, first):
        reader.store.preload(demonstrations)
    assert reader.store.demonstrated == len(first) + len(second)
    model.learn(64, callback=reader, reset_num_timesteps=False)
    experienced = {key for step in reader.steps[-5:] for key in keys(step)}
    for share in (0.0, 0.25, 1.0):
        batch = reader.store.sample(800, generator, demonstration_share=share)
        drawn = keys(batch)
        assert len(drawn) == 800
        shown = int(800 * share)
        assert set(drawn[: 800 - shown]) == (experienced if share < 1 else set())
        assert set(drawn[800 - shown :]) == (set(keys(first)) | set(keys(second)) if share else set())


def test_demonstrations_of_other_layers_lack_their_reward_terms() -> None:
    demonstrations = replace(record(nested=True), terms={"old": np.ones(24)})
    model, reader = make_model(PPO, make_ledgers(nested=True)[1]), Reader(capacity=10)
    model.learn(16, callback=reader)
    reader.store.preload(demonstrations)
    terms = reader.store.sample(4, np.random.default_rng(0), 0.5).terms
    assert terms.keys() == {"task", "more", "old"}
    np.testing.assert_array_equal(np.isnan(terms["task"]), [False, False, True, True])
    np.testing.assert_array_equal(np.isnan(terms["old"]), [True, True, False, False])


def test_demonstrations_before_the_first_step() -> None:
    demonstrations, store = record(), TransitionStore()
    with pytest.raises(RuntimeError, match=r"call attach\(model\) before preload"):
        store.preload(demonstrations)
    reader = Reader()
    make_model(PPO, make_ledgers()[1]).learn(8, callback=reader)
    reader.store.preload(demonstrations)
    assert len(reader.store.sample(5, np.random.default_rng(0), demonstration_share=1.0)) == 5
    with pytest.raises(RuntimeError, match="no transition is kept"):
        reader.store.sample(5, np.random.default_rng(0), demonstration_share=0.5)
    with pytest.raises(ValueError, match=r"demonstration_share=1.5 must be in \[0, 1\]"):
        reader.store.sample(5, np.random.default_rng(0), demonstration_share=1.5)


def test_demonstrations_must_be_of_the_same_environment() -> None:
    reader = Reader()
    make_model(PPO, make_ledgers()[1]).learn(8, callback=reader)
    with pytest.raises(RuntimeError, match=r"demonstration_share=0.1, but there are no demonstrations"):
        reader.store.sample(5, np.random.default_rng(0), demonstration_share=0.1)
    for other, what in ((record(nested=True), "observation"), (record(continuous=True), "action")):
        with pytest.raises(TypeError, match=rf"the demonstrations' {what} is .*, but that of the environments is"):
            reader.store.preload(other)
    other = record()
    other = replace(other, internal=other.internal[:, :1], next_internal=other.next_internal[:, :1])
    with pytest.raises(TypeError, match=r"internal state is \(1,\), but that of the environments is \(2,\)"):
        reader.store.preload(other)
    assert reader.store.demonstrated == 0


# --- what is missing


@pytest.mark.parametrize("where", ["reset", "step"])
def test_a_missing_internal_state_is_named_at_the_first_step(where: str) -> None:
    ledgers, env = make_ledgers(n=3)
    model, reader = make_model(PPO, env), Reader()
    if where == "reset":
        ledgers[1].omit = {"internal"}
    else:
        # The environments are reset before the callback starts.
        reader._on_training_start = lambda: ledgers[1].omit.add("internal")  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"info\['internal'\] is missing in environment 1; .*InternalState"):
        model.learn(24, callback=reader)
    assert len(reader.steps) == 0


def test_a_missing_cost_is_not_a_number() -> None:
    ledgers, env = make_ledgers()
    for ledger in ledgers:
        ledger.omit = {"cost", "reward_terms"}
    reader = Reader()
    make_model(PPO, env).learn(16, callback=reader)
    assert np.isnan(reader.steps[0].cost).all()
    assert reader.steps[0].terms == {}


def test_layers_must_agree() -> None:
    ledgers, env = make_ledgers()
    ledgers[1].omit = {"reward_terms"}
    with pytest.raises(RuntimeError, match=r"info\['reward_terms'\] is missing in environment 1"):
        make_model(PPO, env).learn(16, callback=Reader())


def test_steps_must_not_be_left_out() -> None:
    _, env = make_ledgers()
    with pytest.raises(RuntimeError, match=r"timestep 2 was not read: .* directly, not under EveryNTimesteps"):
        make_model(PPO, env).learn(16, callback=EveryNTimesteps(6, Reader()))
