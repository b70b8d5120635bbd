"""ViabilityCallback over counted actions: it learns the discounted safety value that value iteration finds."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from persist_sb3.buffers import Transitions
from persist_sb3.callbacks import ViabilityCallback
from persist_sb3.models.base import rebuild
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic, reachability_target
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import VecInternalState

STATES, ACTIONS, GAMMA = 9, 3, 0.8
CONSTRAINTS = ["level >= 0.0"]
#: How full the tank is in each state: where it is below 0, the agent is dead.
LEVEL = np.array([1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, -0.3, -0.6])
#: State 6 leads nowhere but to death, and from 5 a single action avoids it.
NEXT = np.array([[0, 1, 2], [0, 2, 3], [1, 3, 4], [2, 4, 5], [3, 5, 6], [6, 4, 7], [7, 8, 7], [7, 7, 7], [8, 8, 8]])


class Tables(gym.Env[Any, Any]):
    observation_space = spaces.Discrete(STATES)
    action_space: spaces.Space[Any] = spaces.Discrete(ACTIONS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(7))
        self.time = 0
        return self.state, {"internal": LEVEL[[self.state]]}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state = int(NEXT[self.state, action])
        self.time += 1
        return self.state, 0.0, bool(LEVEL[self.state] < 0.0), self.time >= 6, {"internal": LEVEL[[self.state]]}


def value_iteration() -> np.ndarray:
    """
    :return: the discounted safety value of every action in every state alive, by the definition
    """
    values = np.zeros((STATES, ACTIONS))
    for _ in range(200):
        margin = LEVEL[NEXT]
        worst = np.minimum(margin, values.max(axis=1)[NEXT])
        values = np.where(margin < 0.0, margin, (1.0 - GAMMA) * margin + GAMMA * worst)
    return values[:7]


class Thirds(Tables):
    """The same where each third of a Box is one of the actions."""

    action_space = spaces.Box(-1.0, 1.0, (1,))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return super().step(min(int(1.5 * (action[0] + 1.0)), ACTIONS - 1))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("world", "pieces"), [(Tables, 0), (Thirds, 12)])
def test_it_learns_the_discounted_safety_value(world: type[Tables], pieces: int, residual: bool) -> None:
    venv = VecInternalState(
        DummyVecEnv([world] * 4), dims=["level"], constraints=CONSTRAINTS, mu=[1.0], low=[-1.0], high=[1.0]
    )
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=256, n_epochs=1, seed=0, device="cpu", learning_rate=1e-9)
    callback = ViabilityCallback(
        gamma=GAMMA,
        tau=0.05,
        net_arch=[64],
        residual=residual,
        pieces=pieces,
        batch_size=128,
        train_freq=1,
        gradient_steps=3,
    )
    model.learn(4096, callback=callback)
    states = np.arange(7)
    encoded = callback.spec.encode(states, LEVEL[states, None])
    if pieces:
        middles = np.array([[-2 / 3], [0.0], [2 / 3]], dtype=np.float32)
        every = callback.actor.action_values(encoded.repeat(ACTIONS, axis=0), np.tile(middles, (7, 1)))
        learned = every.reshape(7, ACTIONS, 2)
    else:
        learned = callback.actor.values(encoded)
    truth = value_iteration()
    for head in (0, 1):  # with a single constraint, both say the same
        assert np.abs(learned[:, :, head] - truth).max() < 0.08
    assert ((learned[:, :, 0] > 0.0) == (truth > 0.0))[np.abs(truth) > 0.08].all()
    # The greedy action keeps the agent alive wherever that can be.
    for state in range(6):
        for _ in range(20):
            state = int(NEXT[state, learned[state, :, 0].argmax()])
            assert LEVEL[state] >= 0.0


def test_the_backup_by_hand() -> None:
    margin = torch.tensor([0.5, 0.2, -0.1, 0.3])
    following = torch.tensor([0.4, 0.9, 0.7, -0.5])
    terminal = torch.tensor([False, False, True, False])
    target = reachability_target(margin, following, terminal, gamma=0.9)
    # 0.1 * 0.5 + 0.9 * 0.4;  0.1 * 0.2 + 0.9 * 0.2;  -0.1, where nothing follows;  0.1 * 0.3 - 0.9 * 0.5
    assert torch.allclose(target, torch.tensor([0.41, 0.2, -0.1, -0.42]))


@pytest.mark.parametrize("residual", [False, True])
def test_arrays_and_tensors_agree(residual: bool) -> None:
    viability = ViabilitySet(CONSTRAINTS, ["level"], mu=[1.0], low=[-1.0], high=[1.0])
    spec = StateSpec(spaces.Box(-1.0, 1.0, (5,)), spaces.MultiDiscrete([2, 3]), viability)
    torch.manual_seed(0)
    critic = ViabilityCritic(spec, net_arch=[16, 16], members=3, residual=residual)
    for parameter in critic.critics.parameters():
        torch.nn.init.normal_(parameter)
    state = np.random.default_rng(0).normal(size=(20, spec.state_dim)).astype(np.float32)
    critic.standardizer.update(torch.as_tensor(state))
    with torch.no_grad():
        expected = critic(torch.as_tensor(state)).min(dim=0).values.numpy()
    assert expected.shape == (20, 6, 2)
    np.testing.assert_allclose(critic.values(state), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(critic.best_action(state), expected[:, :, 0].argmax(axis=1))


def test_counted_actions_are_not_divided() -> None:
    venv = VecInternalState(
        DummyVecEnv([Tables]), dims=["level"], constraints=CONSTRAINTS, mu=[1.0], low=[-1.0], high=[1.0]
    )
    model = PPO("MlpPolicy", venv, n_steps=64, seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"pieces=4 divide a Box of actions, and Discrete\(3\) has values of its own"):
        model.learn(64, callback=ViabilityCallback(pieces=4))


class Tank(gym.Env[Any, Any]):
    """Action 0 leaves the tank as it is, action 1 takes a fiftieth of it; 20 steps leave it far from empty."""

    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.level, self.time = self.np_random.uniform(0.7, 1.0, 1), 0
        return self.level.astype(np.float32), {"internal": self.level}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.level = self.level - 0.02 * action
        self.time += 1
        return self.level.astype(np.float32), 0.0, False, self.time >= 20, {"internal": self.level}


def test_a_residual_critic_knows_a_limit_where_nobody_has_been() -> None:
    venv = VecInternalState(
        DummyVecEnv([Tank] * 4), dims=["level"], constraints=["level >= 0.1"], mu=[1.1], low=[0.0], high=[1.2]
    )
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=256, n_epochs=1, seed=0, device="cpu", learning_rate=0.0)
    callback = ViabilityCallback(net_arch=[32], residual=True, learning_starts=200, batch_size=128, train_freq=1)
    model.learn(3000, callback=callback)
    assert callback.store.sample(3000, np.random.default_rng(0)).next_internal.min() > 0.3
    level = np.array([[0.105], [0.11], [0.15], [0.3]], dtype=np.float32)
    values = callback.actor.values(np.concatenate([level, level], axis=1))[:, :, 0]
    # Nothing empties the tank but action 1, and it need be chosen but once.
    np.testing.assert_allclose(values[:, 0], level[:, 0] - 0.1, atol=0.008)
    np.testing.assert_allclose(values[:, 1], level[:, 0] - 0.12, atol=0.008)


def test_a_critic_from_before_there_were_residual_ones_is_a_plain_one() -> None:
    spec = StateSpec(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2), ViabilitySet(CONSTRAINTS, ["level"], mu=[1.0]))
    plain, residual = ViabilityCritic(spec, [4]), ViabilityCritic(spec, [4], residual=True)
    saved = plain.state_dict()
    del saved["_extra_state"]["arguments"]["residual"]
    assert rebuild(saved, spec, ViabilityCritic).residual is False
    plain.load_state_dict(saved)
    with pytest.raises(ValueError, match="it was saved with residual=False, and this has True"):
        residual.load_state_dict(saved)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("gamma", 1.0), ("tau", 0.0), ("demonstration_share", 1.0), ("pretrain_steps", -1), ("learning_rate", 0.0)],
)
def test_out_of_range(parameter: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{parameter}={value}"):
        ViabilityCallback(**{parameter: value})  # type: ignore[arg-type]


def test_it_trains_as_often_as_it_is_told() -> None:
    trained_at: list[int] = []

    class Watch(ViabilityCallback):
        def _update(self, batch: Transitions) -> Any:
            trained_at.append(self.num_timesteps)
            return super()._update(batch)

    venv = VecInternalState(DummyVecEnv([Tables] * 4), dims=["level"], constraints=CONSTRAINTS, mu=[1.0])
    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(128, callback=Watch(net_arch=[8], learning_starts=12, train_freq={0: 1, 40: 2, 80: 5}))
    # Every step of four environments, every second, every fifth: the 20th, 25th and 30th.
    assert trained_at == [*range(12, 40, 4), *range(40, 80, 8), 80, 100, 120]


def test_the_learning_rate_falls_as_it_is_told() -> None:
    rates: list[tuple[float, float]] = []

    class Watch(ViabilityCallback):
        def _update(self, batch: Transitions) -> Any:
            rates.append((self.num_timesteps, self.optimizer.param_groups[0]["lr"]))
            return super()._update(batch)

    venv = VecInternalState(DummyVecEnv([Tables] * 4), dims=["level"], constraints=CONSTRAINTS, mu=[1.0])
    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(256, callback=Watch(net_arch=[8], learning_starts=64, train_freq=4, learning_rate="lin_0.01"))
    steps, lrs = np.array(rates).T
    # SB3 knows its progress at the beginning of each rollout, and so do its schedules.
    np.testing.assert_allclose(lrs, 0.01 * (1.0 - (np.ceil(steps / 64) - 1) * 64 / 256), rtol=1e-6)
    with pytest.raises(ValueError, match="learning_rate=0"):
        ViabilityCallback(learning_rate=0.0)
