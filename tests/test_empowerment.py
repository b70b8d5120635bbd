"""Empowerment: against exact information and capacity, a Gaussian channel in closed form, and GridLife's oracle."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy.stats import spearmanr
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from persist_sb3.buffers import ExecutedActionRecomputedBonusDictReplayBuffer
from persist_sb3.callbacks import EmpowermentCallback, InternalModelCallback, WorldModelCallback
from persist_sb3.config import PersistConfig
from persist_sb3.envs.dynamics import GridLifeParams, tables
from persist_sb3.envs.oracle import empowerment
from persist_sb3.intrinsic import Empowerment
from persist_sb3.intrinsic.contrastive import SequenceCritic, imagine
from persist_sb3.intrinsic.gaussian import GaussianEstimator, gaussian_information
from persist_sb3.intrinsic.likelihood import LikelihoodEstimator
from persist_sb3.intrinsic.outcomes import ImaginationError, Outcomes, target_columns
from persist_sb3.intrinsic.sequences import SequenceSource
from persist_sb3.models.base import rebuild
from persist_sb3.models.imagination import KnownDynamics, LearnedDynamics
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.world import WorldModel
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import (
    EmpowermentBonus,
    InternalState,
    NonFiniteError,
    VecEmpowermentBonus,
    VecInternalState,
    VectorEmpowermentBonus,
    VectorInternalState,
)
from tests.learners import Pages, make_model
from tests.toys import Scripted, Walker

ROOT = Path(__file__).resolve().parents[1]
LIMITS: dict[str, Any] = {"dims": ["battery", "heat"], "constraints": ["battery >= 0.2"]}
VIABILITY = ViabilitySet(["a >= 0.1"], ["a"], low=[0.0], high=[1.0])
SMALL: dict[str, Any] = {"net_arch": [16], "members": 2, "learning_starts": 32, "batch_size": 32, "train_freq": 4}
QUICK: dict[str, Any] = {"min_updates": 2, "warm_up": 2, "learning_starts": 8, "batch_size": 16, "train_freq": 4}


def make_spec(size: int = 2, action: spaces.Space[Any] | None = None) -> StateSpec:
    return StateSpec(spaces.Box(-np.inf, np.inf, (size,)), action or spaces.Discrete(5), VIABILITY)


class Grid:
    """An empty grid, of states that hold row, column (from 0 to 1) and an internal variable that never changes."""

    members = 1

    def __init__(self, size: int, slip: float) -> None:
        self.size, self.slip = size, slip
        self.targets = tables(GridLifeParams(size=size)).targets

    def states(self) -> np.ndarray:
        cell = np.arange(self.size**2)
        return self._show(cell, np.full((len(cell), 1), 0.5))

    def _show(self, cell: np.ndarray, x: np.ndarray) -> np.ndarray:
        place = np.stack(np.divmod(cell, self.size), axis=1) / (self.size - 1)
        return np.concatenate([place, x], axis=1).astype(np.float32)

    def step(self, state: np.ndarray, action: np.ndarray, members: np.ndarray, noise: Any) -> np.ndarray:
        row, col = np.rint(state[:, :2] * (self.size - 1)).astype(int).T
        slips = noise.random(len(state)) < self.slip
        move = np.where(slips, (noise.random(len(state)) * 5).astype(int), action.argmax(axis=1))
        return self._show(self.targets[move, row * self.size + col], state[:, 2:])


def place_of(grid: Grid, spec: StateSpec, resolution: float = 0.04) -> Outcomes:
    outcomes = Outcomes(spec, [0, 1], resolution)
    outcomes.calibrate(grid.states().var(axis=0))
    return outcomes


# Estimators


def exact_information(grid: Grid, n: int) -> np.ndarray:
    """Under the uniform source, from the channel's own table, in nats."""
    size, one = grid.size**2, np.zeros((5, grid.size**2, grid.size**2))
    for action in range(5):
        np.add.at(one[action], (np.arange(size), grid.targets[action]), 1.0)
    one = (1.0 - grid.slip) * one + grid.slip * one.mean(axis=0)
    channel = one
    for _ in range(n - 1):
        channel = np.einsum("kij,ajl->kail", channel, one).reshape(-1, size, size)
    marginal = channel.mean(axis=0)
    ratio = np.log(channel, where=channel > 0, out=np.zeros_like(channel)) - np.log(
        marginal, where=marginal > 0, out=np.zeros_like(marginal)
    )
    return (channel * ratio).sum(axis=2).mean(axis=0)


def test_the_table_of_the_test_is_right() -> None:
    """An independent program found these bits for 11 x 11 tiles, slip 0.1: middle, edge, corner."""
    grid = Grid(11, 0.1)
    for n, expected in ((1, [1.760, 1.440, 1.015]), (2, [2.496, 1.991, 1.469])):
        bits = exact_information(grid, n).reshape(11, 11) / math.log(2)
        assert [bits[5, 5], bits[0, 5], bits[0, 0]] == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("n", [1, 2])
def test_the_direct_estimator_has_the_exact_information(n: int) -> None:
    grid, spec = Grid(11, 0.1), make_spec()
    estimator = LikelihoodEstimator(grid, place_of(grid, spec), rollouts=24)
    sequences, generator = SequenceSource(spec, n).every(), np.random.default_rng(0)
    state, exact = grid.states()[[60, 5, 0]], exact_information(grid, n)[[60, 5, 0]]
    estimates = np.array([estimator(state, sequences, generator) for _ in range(150 if n == 1 else 20)])
    np.testing.assert_allclose(estimates.mean(axis=0), exact, rtol=0.15)
    assert (estimates <= n * math.log(5) + 1e-9).all()


Asked = Callable[[np.ndarray, np.ndarray], np.ndarray]


def learned_critic(grid: Grid, n: int, negatives: int | None, steps: int) -> Asked:
    """What InfoNCE says, once its critic has learned, of states and of the sequences that are taken there."""
    spec = make_spec()
    outcomes, source, generator = place_of(grid, spec), SequenceSource(spec, n), np.random.default_rng(0)
    torch.manual_seed(0)
    critic = SequenceCritic(3, [0, 1], 5 * n, [64, 64], 32)
    optimizer = torch.optim.Adam(critic.parameters(), lr=4e-3)

    def information(state: np.ndarray, taken: np.ndarray) -> torch.Tensor:
        others = source.every() if negatives is None else source.draw(negatives - 1, generator)
        outcome = imagine(grid, outcomes, state, taken, generator)
        parts = [torch.as_tensor(part) for part in (state, taken, outcome, others)]
        critic.measure(parts[0], parts[2])
        return critic.information(*parts, complete=negatives is None)

    states = grid.states()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -information(states[generator.integers(len(states), size=256)], source.draw(256, generator)).mean()
        loss.backward()
        optimizer.step()
    return lambda state, taken: information(state, taken).detach().numpy()


@pytest.mark.parametrize("negatives", [256, None])
def test_infonce_comes_close_to_the_exact_information_and_never_exceeds_its_bound(negatives: int | None) -> None:
    grid = Grid(11, 0.1)
    information, source = learned_critic(grid, 1, negatives, 400), SequenceSource(make_spec(), 1)
    taken = source.draw(4500, np.random.default_rng(1))
    values = information(np.repeat(grid.states()[[60, 5, 0]], 1500, axis=0), taken).reshape(3, -1)
    assert (values <= math.log(negatives or 5) + 1e-5).all()
    middle, edge, corner = values.mean(axis=1)
    assert middle > edge > corner
    np.testing.assert_allclose([middle, edge, corner], exact_information(grid, 1)[[60, 5, 0]], rtol=0.15)


def test_infonce_ranks_tiles_as_the_oracle_does() -> None:
    """As the direct estimator does below, if as many outcomes of a tile are looked at, and all sequences of each."""
    grid = Grid(10, 0.02)
    information, every = learned_critic(grid, 2, None, 500), SequenceSource(make_spec(), 2).every()
    rows, taken = np.repeat(grid.states(), len(every), axis=0), np.tile(every, (100, 1, 1))
    values = np.mean([information(rows, taken).reshape(100, -1).mean(axis=1) for _ in range(40)], axis=0)
    assert spearmanr(values, empowerment(GridLifeParams(), 2))[0] >= 0.9


def test_with_the_best_critic_infonce_of_all_sequences_is_the_exact_information() -> None:
    """Of a channel of three inputs and four outputs. A mean over sequences that are drawn makes it less."""
    channel = np.array([[0.7, 0.1, 0.1, 0.1], [0.05, 0.8, 0.05, 0.1], [0.05, 0.7, 0.2, 0.05]])
    critic = SequenceCritic(1, [0] * 4, 3, [], 3)
    with torch.no_grad():
        critic.states.weights[0].zero_()
        critic.states.weights[0][0, 1:] = torch.as_tensor(np.log(channel.T))
        critic.states.biases[0].zero_()
        critic.sequences.weights[0][0] = torch.eye(3)
        critic.sequences.biases[0].zero_()
    every = torch.eye(3)[:, None]
    state, taken, outcome = torch.zeros(12, 1), every.repeat_interleave(4, dim=0), torch.eye(4).repeat(3, 1)
    exact = (channel * np.log(channel / channel.mean(axis=0))).sum(axis=1).mean()

    def mean(others: torch.Tensor, complete: bool) -> float:
        nats = critic.information(state, taken, outcome, others, complete=complete).detach().numpy()
        return float((channel.ravel() * nats).sum() / 3)

    assert mean(every, True) == pytest.approx(exact, rel=1e-4)
    generator = np.random.default_rng(0)
    drawn = [mean(every[generator.integers(3, size=15)], False) for _ in range(400)]
    assert np.mean(drawn) < exact - 0.01


def test_infonce_by_hand() -> None:
    """With a critic that knows the action, ``log K`` is reached up to those of the others that are the same action."""
    critic = SequenceCritic(1, [0], 3, [], 3)
    with torch.no_grad():
        critic.states.weights[0].zero_()
        critic.states.biases[0][0, 0] = torch.tensor([7.0, 0.0, 0.0])
        critic.sequences.weights[0][0] = torch.eye(3)
        critic.sequences.biases[0].zero_()
    every = torch.eye(3)[:, None]
    others = torch.cat([every, every[1:]])  # one is the same as what was taken, four are not
    value = critic.information(torch.zeros(1, 1), every[:1], torch.zeros(1, 1), others)
    assert float(value[0].detach()) == pytest.approx(7.0 - math.log((2 * math.exp(7.0) + 4) / 6), rel=1e-5)
    value = critic.information(torch.zeros(1, 1), every[:1], torch.zeros(1, 1), every, complete=True)
    assert float(value[0].detach()) == pytest.approx(7.0 - math.log((math.exp(7.0) + 2) / 3), rel=1e-5)


def test_ranks_tiles_as_the_oracle_does() -> None:
    """Spearman with the exact capacity is at most 0.96 where ties are broken by chance."""
    grid, spec = Grid(10, 0.02), make_spec()
    estimator = LikelihoodEstimator(grid, place_of(grid, spec), rollouts=8)
    generator = np.random.default_rng(0)
    estimates = [estimator(grid.states(), SequenceSource(spec, 2).every(), generator) for _ in range(5)]
    assert spearmanr(np.mean(estimates, axis=0), empowerment(GridLifeParams(), 2))[0] >= 0.9


def linear_world(a: np.ndarray, b: np.ndarray) -> tuple[Any, StateSpec]:
    """``s' = A s + B a``, known and differentiable; the internal variable is the first number."""

    class World:
        members = 1
        forward = torch.as_tensor(np.concatenate([a, b], axis=1), dtype=torch.float32)

        def predict(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean = torch.cat([state[:, : len(a)], action], dim=1) @ self.forward.T
            mean = torch.cat([mean, mean[:, :1]], dim=1)
            return mean, torch.zeros_like(mean)

        def step(self, state: np.ndarray, action: np.ndarray, members: Any, noise: Any) -> np.ndarray:
            return self.predict(torch.as_tensor(state), torch.as_tensor(action))[0].numpy()

    return World(), make_spec(len(a), spaces.Box(-1.0, 1.0, (b.shape[1],), dtype=np.float32))


@pytest.mark.parametrize(("size", "horizon"), [(5, 1), (5, 2), (2, 3)])
def test_the_gaussian_channel_is_that_of_the_closed_form(size: int, horizon: int) -> None:
    generator = np.random.default_rng(size)
    a, b = 0.5 * generator.normal(size=(size, size)), generator.normal(size=(size, 2))
    world, spec = linear_world(a, b)
    covariance, noise = np.array([[0.5, 0.2], [0.2, 0.4]]), 0.07
    outcomes = Outcomes(spec, list(range(size)))
    estimator = GaussianEstimator(world, outcomes, covariance.tolist(), noise)
    state = generator.normal(size=(4, size + 1)).astype(np.float32)
    value = estimator(state, SequenceSource(spec, horizon).draw(4, generator), generator)
    # h(s') - h(s' | a) of Gaussians, with the covariance of s' built step by step.
    spread = np.zeros((size, size))
    for _ in range(horizon):
        spread = a @ spread @ a.T + b @ covariance @ b.T
    expected = 0.5 * (np.linalg.slogdet(spread + noise * np.eye(size))[1] - size * math.log(noise))
    np.testing.assert_allclose(value, expected, rtol=1e-3)


def test_both_forms_of_the_determinant_agree() -> None:
    jacobian = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    narrow = gaussian_information(jacobian, torch.eye(2, dtype=torch.float64), noise)
    # More inputs than outputs: two that do nothing, and two more that do next to nothing.
    wide = torch.cat([jacobian, torch.zeros(3, 4, 4, dtype=torch.float64)], dim=2)
    torch.testing.assert_close(gaussian_information(wide, torch.eye(6, dtype=torch.float64), noise), narrow)


def test_a_learned_linear_world_has_the_gaussian_information() -> None:
    """The Jacobian, and the noise of the last state, from a world model that has seen 4000 transitions."""
    generator = np.random.default_rng(0)
    size, n, sd = 2, 4000, 0.2
    a, b = np.array([[0.9, 0.2], [0.0, 0.8]]), np.array([[0.1, 0.0], [0.6, 0.3]])
    spec = make_spec(size, spaces.Box(-1.0, 1.0, (2,), dtype=np.float32))
    state, action = generator.normal(size=(n, size)), generator.uniform(-1.0, 1.0, (n, 2))
    following = state @ a.T + action @ b.T + sd * generator.normal(size=(n, size))
    rows = torch.as_tensor(np.concatenate([state, state[:, :1]], axis=1), dtype=torch.float32)
    taken, reached = (torch.as_tensor(part, dtype=torch.float32) for part in (action, following))
    torch.manual_seed(0)
    world = WorldModel(spec, net_arch=[16], members=2, shown=[[0, 0]])
    world.measure(rows, taken, reached)
    optimizer = torch.optim.Adam(world.parameters(), lr=3e-3)
    for _ in range(300):
        batch = torch.as_tensor(generator.integers(n, size=256))
        optimizer.zero_grad()
        world.loss(rows[batch], taken[batch], reached[batch], torch.ones(2, 256), 0.5).backward()
        optimizer.step()
    outcomes = Outcomes(spec, [0, 1], resolution=1e-3)
    estimator = GaussianEstimator(LearnedDynamics(world), outcomes, rollouts=8)
    value = estimator(rows[:64].numpy(), SequenceSource(spec, 1).draw(64, generator), generator)
    expected = 0.5 * np.linalg.slogdet(np.eye(2) + b @ b.T / 3.0 / sd**2)[1]
    assert value.mean() == pytest.approx(expected, rel=0.05)


def test_what_is_looked_at_counts() -> None:
    space = spaces.Dict({"place": spaces.Box(0.0, 1.0, (2,)), "kind": spaces.Discrete(3)})
    spec = StateSpec(space, spaces.Discrete(2), VIABILITY)
    # gymnasium sorts the keys of a Dict: kind 0 to 2, place 3 and 4, the internal variable 5.
    cases: list[tuple[list[str | int] | None, list[int]]] = [
        (None, [0, 1, 2, 3, 4, 5]),
        (["obs.place"], [3, 4]),
        (["obs.place[1]", "a"], [4, 5]),
        (["obs.kind"], [0, 1, 2]),
        (["obs"], [0, 1, 2, 3, 4]),
        ([5, 0], [0, 5]),
    ]
    for target, columns in cases:
        assert target_columns(spec, target, []) == columns
    # What is there twice counts once.
    assert target_columns(spec, None, [0]) == [0, 1, 2, 3, 4]
    wrong: list[tuple[Any, str]] = [
        (["b"], "neither"),
        (["obs.plaec"], "does not exist"),
        ([6], "no column 6"),
        ("a", "list"),
    ]
    for mistake, message in wrong:
        with pytest.raises(ValueError, match=message):
            target_columns(spec, mistake, [])


def test_outcomes_of_every_kind_are_drawn_with_their_moments() -> None:
    space = spaces.Dict({"n": spaces.Box(-9.0, 9.0, (1,)), "k": spaces.Discrete(3), "b": spaces.MultiBinary(1)})
    outcomes = Outcomes(StateSpec(space, spaces.Discrete(2), VIABILITY), range(5))
    mean = np.tile([0.3, 0.2, 0.1, 0.7, -1.0], (20_000, 1))
    drawn = outcomes.draw(mean, np.full_like(mean, 0.25), np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=0), mean[0], atol=0.02)
    assert drawn[:, 4].std() == pytest.approx(0.5, abs=0.02)
    assert set(np.unique(drawn[:, :4])) == {0.0, 1.0} and (drawn[:, 1:4].sum(axis=1) == 1.0).all()


def test_a_category_that_is_chosen_holds_its_entropy() -> None:
    """Each of three actions leads to a kind of its own, so one action holds log 3 nats."""
    spec = StateSpec(spaces.Discrete(3), spaces.Discrete(3), VIABILITY)

    class Chooser:
        members = 1

        def step(self, state: Any, action: Any, members: Any, noise: Any) -> np.ndarray:
            return np.concatenate([action, state[:, 3:]], axis=1)

        def moments(self, state: Any, action: Any, members: Any) -> tuple[np.ndarray, np.ndarray]:
            mean = self.step(state, action, members, None)
            return mean, np.zeros_like(mean)

    estimator = LikelihoodEstimator(Chooser(), Outcomes(spec, [0, 1, 2]))
    value = estimator(np.full((2, 4), 0.5, np.float32), SequenceSource(spec, 1).every(), np.random.default_rng(0))
    # All but the share of the marginal: log(0.95 * 3 + 0.05).
    np.testing.assert_allclose(value, math.log(2.9), rtol=1e-4)


def test_sequences_are_all_of_them_or_drawn_uniformly() -> None:
    source = SequenceSource(make_spec(2, spaces.Discrete(3)), 2)
    every = source.every()
    assert every.shape == (9, 2, 3) and len(np.unique(every.reshape(9, -1), axis=0)) == 9
    assert source.count == 9 and source.entropy == pytest.approx(2 * math.log(3))
    drawn = source.draw(9000, np.random.default_rng(0)).argmax(axis=2) @ [3, 1]
    assert np.abs(np.bincount(drawn, minlength=9) - 1000).max() < 150
    box = SequenceSource(make_spec(2, spaces.Box(-2.0, 2.0, (2,))), 3)
    assert box.count == box.entropy == math.inf and box.draw(4, np.random.default_rng(0)).shape == (4, 3, 2)
    with pytest.raises(ValueError, match="infinitely many"):
        box.every()


def test_a_model_that_has_diverged_is_named() -> None:
    spec = make_spec()
    outcomes = Outcomes(spec, [0, 1])
    sequences, generator = SequenceSource(spec, 2).every(), np.random.default_rng(0)

    def broken(column: int) -> Any:
        class Broken:
            members = 1

            def step(self, state: Any, action: Any, members: Any, noise: Any) -> np.ndarray:
                following = state.copy()
                following[:, column] = np.nan
                return following

        return Broken()

    for column, message in (
        (1, "the world model predicts nan for column 1 of the flattened observation at imagined step 1"),
        (2, "the internal variable 'a'"),
    ):
        with pytest.raises(ImaginationError, match=message):
            LikelihoodEstimator(broken(column), outcomes)(np.zeros((1, 3), np.float32), sequences, generator)
        with pytest.raises(ImaginationError, match=message):
            imagine(broken(column), outcomes, np.zeros((25, 3), np.float32), sequences, generator)


# The model


def test_the_estimator_follows_from_the_actions() -> None:
    box = spaces.Box(-1.0, 1.0, (2,))
    assert Empowerment(make_spec(2, box)).estimator == "logdet"
    assert Empowerment(make_spec(), horizon=3).estimator == "likelihood"
    with pytest.warns(UserWarning, match=r"negatives=256 .* log K = 5\.55 nats.* k log\|A\| = 6\.44.* to 625"):
        assert Empowerment(make_spec(), horizon=4).estimator == "infonce"


def test_bounds() -> None:
    assert Empowerment(make_spec(), horizon=2).bound == pytest.approx(2 * math.log(5))
    assert Empowerment(make_spec(), "infonce", horizon=2).bound == pytest.approx(2 * math.log(5))
    with pytest.warns(UserWarning, match="log K"):
        assert Empowerment(make_spec(), "infonce", horizon=4).bound == pytest.approx(math.log(256))
    with pytest.warns(UserWarning, match="log K"):
        model = Empowerment(make_spec(), "likelihood", horizon=4)
    assert model.bound == pytest.approx(math.log(256))
    assert Empowerment(make_spec(2, spaces.Box(-1.0, 1.0, (2,)))).bound == math.inf
    model.updates.fill_(1)
    with torch.no_grad():
        model.network.biases[-1].fill_(1e3)
    np.testing.assert_allclose(model.value(np.zeros((3, 3), np.float32)), math.log(256))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"estimator": "logdet"}, TypeError, "for Box actions, and these are Discrete"),
        ({"estimator": "nce"}, ValueError, "estimator='nce' must be"),
        ({"horizon": 0}, ValueError, "horizon=0"),
        ({"negatives": 1}, ValueError, "negatives=1"),
    ],
)
def test_wrong_models_are_refused(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Empowerment(make_spec(), **kwargs)


def test_both_ways_to_the_value_agree_and_it_is_rebuilt() -> None:
    torch.manual_seed(0)
    model = Empowerment(make_spec(4), net_arch=[16, 8])
    state = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    np.testing.assert_array_equal(model.value(state), 0.0)
    model.updates.fill_(1)
    model.standardizer.update(torch.as_tensor(state))
    with torch.no_grad():
        model.network.biases[-1].fill_(0.5)
    np.testing.assert_allclose(model.value(state), model(torch.as_tensor(state)).detach(), rtol=1e-4)
    copied = rebuild(model.state_dict(), make_spec(4), Empowerment)
    np.testing.assert_array_equal(copied.value(state), model.value(state))


# The layer

ROWS = [[1.0, 0.2], [0.5, 0.3], [0.8, 0.4]]
#: The model of `bound` says ``0.1 k log 5`` nats for each unit of the first number; the unit is 0.25, the weight 3.
BONUSES = [3 * 0.25 * 0.1 * 2 * math.log(2) * row[0] for row in ROWS[1:]]


def bound(env: Any, training: bool = True) -> Any:
    spec = StateSpec(spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(2), ViabilitySet(**VIA))
    model = Empowerment(spec, net_arch=[])
    with torch.no_grad():
        model.network.weights[0].zero_()
        model.network.weights[0][0, 0] = 0.1
        model.network.biases[0].zero_()
    model.updates.fill_(1)
    model.unit.fill_(0.25)
    env.bind({"empowerment": model}, training=training)
    return env


VIA: dict[str, Any] = {"constraints": ["battery >= 0.2"], "dims": ["battery", "heat"]}


def test_bonus_by_hand_on_the_true_next_state() -> None:
    env = bound(EmpowermentBonus(InternalState(Scripted(ROWS, reward=1.0), **LIMITS), weight=3.0))
    vec = bound(VecEmpowermentBonus(VecInternalState(DummyVecEnv([lambda: Scripted(ROWS)] * 2), **LIMITS), weight=3.0))
    vec.reset()
    for _ in range(2):
        env.reset()
        for expected in BONUSES:
            _, reward, _, _, info = env.step(0)
            assert info["reward_terms"] == pytest.approx({"task": 1.0, "intrinsic": expected}, rel=1e-3)
            assert info["persist"]["empowerment"] == pytest.approx(expected / 0.75, rel=1e-3)
            assert reward == pytest.approx(1.0 + expected, rel=1e-3)
            np.testing.assert_allclose(vec.step(np.zeros(2, dtype=int))[1], expected, rtol=1e-3)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_in_either_autoreset_mode(mode: AutoresetMode) -> None:
    envs = SyncVectorEnv([lambda: Scripted(ROWS)] * 2, autoreset_mode=mode)
    env = bound(VectorEmpowermentBonus(VectorInternalState(envs, **LIMITS), weight=3.0))
    env.reset()
    between = [0.0] if mode is AutoresetMode.NEXT_STEP else []
    for expected in [*BONUSES, *between] * 2:
        np.testing.assert_allclose(env.step(np.zeros(2, dtype=int))[1], expected, rtol=1e-3)


def test_wrong_wiring_of_the_layer_is_refused() -> None:
    env = EmpowermentBonus(InternalState(Walker(), **LIMITS))
    env.reset()
    assert env.step(0)[4]["reward_terms"]["intrinsic"] == 0.0
    with pytest.raises(RuntimeError, match="place EmpowermentBonus outside"):
        bound(env)
    env.bind({}, training=True)
    env.reset()
    with pytest.raises(RuntimeError, match=r"WorldModelCallback\(\) and persist_sb3\.callbacks\.EmpowermentCallback"):
        env.step(0)


def test_a_bonus_that_is_not_finite_is_an_error() -> None:
    env = bound(EmpowermentBonus(InternalState(Scripted(ROWS), **LIMITS)))
    env.layer.model.network.weights[0].data.fill_(np.nan)
    env.reset()
    with pytest.raises(NonFiniteError, match=r"EmpowermentBonusLayer\) of environment 0 is nan"):
        env.step(0)


# The callback


def make_vec(action: str = "discrete", n: int = 2, vec: type[Any] = DummyVecEnv) -> VecEnv:
    walker = partial(Walker, "box", action)
    return VecEmpowermentBonus(VecInternalState(vec([walker] * n), **LIMITS, append=True), weight=0.5)


class Bonuses(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[tuple[float, float]]] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.rows.append([(i["reward_terms"]["intrinsic"], i["persist"]["empowerment"]) for i in infos])
        return True


@pytest.mark.parametrize(
    ("algorithm", "action", "estimator"),
    [
        (PPO, "discrete", "likelihood"),
        (PPO, "discrete", "infonce"),
        (PPO, "multidiscrete", "likelihood"),
        (PPO, "box", "infonce"),
        (SAC, "box", "logdet"),
    ],
)
def test_trains_logs_and_pays(algorithm: Any, action: str, estimator: Any) -> None:
    model, pages, bonuses = make_model(make_vec(action), algorithm), Pages(), Bonuses()
    model.set_logger(Logger(None, [pages]))
    callback = EmpowermentCallback(estimator=estimator, **QUICK)
    model.learn(256, callback=[WorldModelCallback(**SMALL), callback, bonuses], log_interval=1)
    logged = {key.removeprefix("persist/empowerment/"): value for page in pages.pages for key, value in page.items()}
    assert {"loss", "estimate", "mean", "factor"} <= logged.keys()
    assert ("critic_loss" in logged) == (estimator == "infonce")
    assert ("bound" in logged) == (estimator != "logdet")
    assert np.isfinite([value for value in logged.values() if isinstance(value, float)]).all()
    paid = np.array(bonuses.rows)
    np.testing.assert_array_equal(paid[:8, :, 0], 0.0)
    assert callback.updates > 10 and (paid[..., 1].max() > 0.0)
    np.testing.assert_allclose(paid[-1, :, 0], 0.5 * paid[-1, :, 1] / callback.actor.full, rtol=1e-6)
    if estimator != "logdet":
        assert paid[..., 1].max() <= callback.actor.bound


@pytest.mark.parametrize("estimator", ["likelihood", "infonce"])
def test_the_network_learns_what_the_estimator_says(estimator: Any) -> None:
    """In a toy whose action decides more, the fuller the battery: its known dynamics, and two levels."""

    class Valve(gym.Env[Any, Any]):
        observation_space = spaces.Box(-2.0, 2.0, (2,), dtype=np.float32)
        action_space = spaces.Discrete(3)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.x = np.array([float(self.np_random.random() < 0.5), 0.0])
            return self.x.astype(np.float32), {"internal": self.x[:1] * 0.5 + 0.3}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.x[1] = self.x[0] * (int(action) - 1)
            return self.x.astype(np.float32), 0.0, False, bool(self.np_random.random() < 0.2), {
                "internal": self.x[:1] * 0.5 + 0.3
            }  # fmt: skip

    def function(observation: Any, internal: Any, action: Any) -> tuple[Any, Any]:
        following = observation.copy()
        following[:, 1] = following[:, 0] * (np.asarray(action) - 1.0)
        return following, internal

    limits = {"dims": ["battery"], "constraints": ["battery >= 0.2"]}
    env = VecEmpowermentBonus(VecInternalState(DummyVecEnv([Valve] * 4), **limits))
    callback = EmpowermentCallback(
        horizon=1,
        estimator=estimator,
        dynamics=function,
        learning_starts=32,
        batch_size=64,
        train_freq=4,
        gradient_steps=8,
        learning_rate=3e-3,
    )
    make_model(env).learn(1024, callback=callback)
    # One of three places, or always the same.
    empty, full = callback.actor.value(np.array([[0.0, 0.0, 0.3], [1.0, 0.0, 0.8]], dtype=np.float32))
    assert empty < 0.15 and full == pytest.approx(math.log(3), abs=0.15)


def test_where_no_action_matters_infonce_finds_no_influence() -> None:
    """Although its critic learns fast from few states, and may well learn by heart what chance has brought."""

    class Noise:
        members = 1

        def step(self, state: np.ndarray, action: np.ndarray, members: Any, noise: Any) -> np.ndarray:
            return noise.standard_normal(state.shape).astype(np.float32)

    model, pages = make_model(make_vec()), Pages()
    model.set_logger(Logger(None, [pages]))
    model.learn(256, callback=EmpowermentCallback(estimator="infonce", dynamics=Noise(), learning_rate=1e-2, **QUICK))
    assert all(page["persist/empowerment/estimate"] < 0.05 for page in pages.pages[1:])


def test_training_is_the_same_with_and_without_what_only_watches() -> None:
    def weights(watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        env: VecEnv = VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS, append=True)
        model = make_model(VecEmpowermentBonus(env, weight=0.0) if watched else env)
        callbacks: Any = [WorldModelCallback(**SMALL), EmpowermentCallback(**QUICK, seed=5)] if watched else None
        model.learn(192, callback=callbacks)
        return [*model.policy.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(weights(False), weights(True), strict=True))


def test_seeded() -> None:
    def train(seed: int) -> torch.Tensor:
        model = make_model(make_vec())
        callback = EmpowermentCallback(**QUICK, seed=seed)
        model.learn(128, callback=[WorldModelCallback(**SMALL, seed=1), callback])
        return callback.actor.network.weights[0].detach()

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


def test_evaluation_changes_nothing_and_workers_see_the_model() -> None:
    env = make_vec(vec=SubprocVecEnv)
    layered: Any = EmpowermentBonus(InternalState(Monitor(Walker("box")), **LIMITS, append=True))
    evaluation = DummyVecEnv([lambda: layered])
    model, bonuses = make_model(env), Bonuses()
    callback = EmpowermentCallback(**QUICK)
    states = []

    class Watched(EvalCallback):
        def _on_step(self) -> bool:
            states.append(callback.actor.state_dict()["standardizer.count"].clone())
            result = super()._on_step()
            states.append(callback.actor.state_dict()["standardizer.count"].clone())
            return result

    model.learn(
        192,
        callback=[WorldModelCallback(**SMALL), callback, Watched(evaluation, eval_freq=40, verbose=0), bonuses],
    )
    env.close()
    assert layered.layer.model is callback.actor
    assert all(torch.equal(*pair) for pair in zip(states[::2], states[1::2], strict=True))
    assert np.array(bonuses.rows)[-20:, :, 0].max() > 0.0


def test_a_schedule_lowers_what_is_paid() -> None:
    bonuses, callback = Bonuses(), EmpowermentCallback(schedule="lin_1", **QUICK)
    make_model(make_vec()).learn(384, callback=[WorldModelCallback(**SMALL), callback, bonuses])
    paid = np.array(bonuses.rows)
    share = paid[..., 0] * callback.actor.full / np.maximum(paid[..., 1], 1e-9) / 0.5
    # The last of six rollouts of 64 steps begins when a sixth remains.
    np.testing.assert_allclose(share[-1], 1 / 6, rtol=1e-3)


@pytest.mark.parametrize("estimator", ["likelihood", "infonce"])
def test_rides_in_the_zip_and_resumes(tmp_path: Path, estimator: Any) -> None:
    model = make_model(make_vec())
    trained = EmpowermentCallback(estimator=estimator, **QUICK)
    trained.unit.set_factor(0.5)
    model.learn(192, callback=[WorldModelCallback(**SMALL), trained])
    model.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", env=model.get_env())
    resumed = EmpowermentCallback(estimator=estimator, **QUICK)
    bonuses = Bonuses()
    before = {key: value for key, value in trained.actor.state_dict().items() if isinstance(value, torch.Tensor)}
    before = {key: value.clone() for key, value in before.items()}

    class Unchanged(BaseCallback):
        def _on_training_start(self) -> None:
            here = resumed.actor.state_dict()
            assert all(torch.equal(here[key], value) for key, value in before.items())

        def _on_step(self) -> bool:
            return True

    again.learn(64, callback=[WorldModelCallback(**SMALL), resumed, Unchanged(), bonuses], reset_num_timesteps=False)
    assert resumed.updates > trained.updates
    # Paid from the first step on, and half of it, as before.
    paid = np.array(bonuses.rows)
    assert paid[:16, :, 0].max() > 0.0
    np.testing.assert_allclose(paid[..., 0], 0.5 * 0.5 * paid[..., 1] / resumed.actor.full, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 0}, "horizon=0"),
        ({"negatives": 1}, "negatives=1"),
        ({"estimator": "mine"}, "estimator='mine' must be 'likelihood', 'infonce', 'logdet'"),
        ({"rollouts": 1}, "rollouts=1 must be at least 2"),
        ({"resolution": 0.0}, "resolution=0.0"),
        ({"noise_var": -1.0}, "noise_var=-1.0"),
        ({"action_cov": [[1.0, 2.0], [2.0, 1.0]]}, "positive definite"),
        ({"estimator": "infonce", "noise_var": 1.0}, "are for estimator='logdet'"),
        ({"schedule": "cos_1"}, "schedule 'cos_1'"),
        ({"states": 0}, "states=0"),
        ({"estimates": 0}, "estimates=0"),
    ],
)
def test_wrong_parameters_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmpowermentCallback(**kwargs)


def test_wrong_wiring_is_refused_when_training_starts() -> None:
    world = WorldModelCallback(**SMALL)
    hidden = VecEmpowermentBonus(VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS))
    mistakes: list[tuple[VecEnv, Any, type[Exception], str]] = [
        (make_vec(), [EmpowermentCallback()], RuntimeError, r"add persist_sb3\.callbacks\.WorldModelCallback"),
        (make_vec(), [world, EmpowermentCallback(estimator="logdet")], TypeError, "for Box actions"),
        (make_vec(), [world, EmpowermentCallback(target=["obs.place"])], RuntimeError, "place"),
        (hidden, [world, EmpowermentCallback()], RuntimeError, r"does not show battery, heat.*InternalModelCallback"),
        (hidden.venv, [world, InternalModelCallback(**SMALL), EmpowermentCallback()], RuntimeError, "no layer uses"),
        (
            make_vec("box"),
            [EmpowermentCallback(dynamics=lambda observation, internal, action: (observation, internal))],
            RuntimeError,
            r"no predict\(state, action\) in torch",
        ),
    ]
    for env, callbacks, error, message in mistakes:
        with pytest.raises(error, match=message):
            make_model(env).learn(32, callback=callbacks)


def test_with_an_internal_model_hidden_variables_are_imagined() -> None:
    env = VecEmpowermentBonus(VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS))
    callback = EmpowermentCallback(**QUICK)
    make_model(env).learn(128, callback=[callback, WorldModelCallback(**SMALL), InternalModelCallback(**SMALL)])
    # The walker's observation of 4, and two variables that it does not declare to be shown.
    assert callback.actor.columns == list(range(6)) and callback.updates > 0


def test_a_latent_world_model_is_imagined_with_too() -> None:
    env = VecEmpowermentBonus(VecInternalState(DummyVecEnv([Walker] * 2), **LIMITS))
    world: Any = WorldModelCallback(kind="latent", learning_starts=32, batch_size=32, train_freq=8)
    callback = EmpowermentCallback(**QUICK)
    # It predicts the internal variables itself, so nothing is hidden from it.
    make_model(env).learn(160, callback=[world, callback])
    assert callback.updates > 0 and np.isfinite(callback.actor.value(np.zeros((2, 6), np.float32))).all()
    steered = VecEmpowermentBonus(VecInternalState(DummyVecEnv([partial(Walker, "box", "box")] * 2), **LIMITS))
    again: Any = WorldModelCallback(kind="latent", learning_starts=32, batch_size=32, train_freq=8)
    with pytest.raises(RuntimeError, match=r"a latent world model has no predict.*kind='gaussian'"):
        make_model(steered).learn(32, callback=[again, EmpowermentCallback(**QUICK)])


def test_a_diverged_world_model_is_named_in_training() -> None:
    class Diverging(WorldModelCallback):
        def _update(self, batch: Any) -> Any:
            result = super()._update(batch)
            self.learner.ensemble.biases[-1].data.fill_(np.nan)
            return result

    with pytest.raises(ImaginationError, match="the world model predicts nan for column 0"):
        make_model(make_vec()).learn(256, callback=[Diverging(**SMALL), EmpowermentCallback(**QUICK)])


# The configuration


def test_the_reference_file_trains() -> None:
    persist = PersistConfig.from_yaml(ROOT / "examples" / "persist.yml")
    assert dict(persist.layers())["EmpowermentBonus"] == {"weight": 0.3}
    callbacks = persist.callbacks()
    assert [type(callback).__name__ for callback in callbacks] == [
        "WorldModelCallback",
        "EmpowermentCallback",
        "ViabilityCallback",
        "InternalModelCallback",
        "MetricsCallback",
    ]
    for callback in callbacks:
        if isinstance(callback, EmpowermentCallback):
            callback.min_updates, callback.warm_up, callback.learning_starts = 2, 2, 16
        elif hasattr(callback, "learning_starts"):
            callback.learning_starts = 32
    venv = persist.wrap_vec(DummyVecEnv([lambda: gym.make(persist.env_id, **persist.env_kwargs)] * 2))
    quick = {"learning_starts": 64, "train_freq": 8, "gradient_steps": 1, "batch_size": 32}
    model = SAC(env=venv, seed=0, device="cpu", buffer_size=1000, **{**persist.algorithm_kwargs(), **quick})
    bonuses = Bonuses()
    model.learn(256, callback=[*callbacks, bonuses])
    part = model.persist.parts["empowerment"]  # type: ignore[attr-defined]
    assert part.estimator == "logdet" and int(part.updates) > 2 and float(part.unit) > 0.0
    paid = np.array(bonuses.rows)
    np.testing.assert_allclose(paid[-1, :, 0], 0.3 * paid[-1, :, 1] * float(part.unit), rtol=1e-6)
    # The first steps were not paid, and are now.
    buffer: Any = model.replay_buffer
    assert isinstance(buffer, ExecutedActionRecomputedBonusDictReplayBuffer)
    np.testing.assert_array_equal(buffer.bonuses[:16], 0.0)
    assert (buffer.bonus(np.arange(16), np.zeros(16, dtype=int)) > 0.0).any()


# GridLife


@pytest.mark.slow
def test_a_learned_world_ranks_tiles_as_the_oracle_does() -> None:
    """A world model of what is shown of a tile, taught by random moves, on two layouts that it has not seen."""
    env = gym.make("GridLifeFlat-v0")
    env.action_space.seed(0)
    spec = StateSpec(env.observation_space, env.action_space, env.get_wrapper_attr("viability"))
    rows, actions, reached, done = [], [], [], True
    for step in range(20_000):
        if done:
            observation, info = env.reset(seed=step)
        action = env.action_space.sample()
        rows.append(np.append(observation, info["internal"]))
        observation, _, terminated, truncated, info = env.step(action)
        actions.append(np.eye(5)[action])
        reached.append(observation)
        done = terminated or truncated
    state, taken, following = (
        torch.as_tensor(np.array(part), dtype=torch.float32) for part in (rows, actions, reached)
    )
    torch.manual_seed(0)
    shown = [[spec.observation_dim - 3 + i, i] for i in range(3)]
    world = WorldModel(spec, net_arch=[128, 128], members=2, shown=shown)
    world.measure(state, taken, following)
    optimizer, generator = torch.optim.Adam(world.parameters(), lr=1e-3), np.random.default_rng(0)
    for _ in range(2000):
        batch = torch.as_tensor(generator.integers(len(state), size=256))
        optimizer.zero_grad()
        world.loss(state[batch], taken[batch], following[batch], torch.ones(2, 256), 0.5).backward()
        torch.nn.utils.clip_grad_norm_(world.parameters(), 10.0)
        optimizer.step()
    outcomes = Outcomes(spec, range(spec.observation_dim))
    outcomes.calibrate(world.standardizer.var.numpy())
    estimator = LikelihoodEstimator(LearnedDynamics(world), outcomes)
    world_env: Any = env.unwrapped
    for layout in (1_000_000, 1_000_001):
        world_env.reset(options={"layout_seed": layout})
        snapshot = world_env.snapshot()
        tiles = []
        for cell in range(100):
            snapshot.cell[...] = cell
            world_env.restore(snapshot)
            tiles.append(spec.encode(world_env._observe()[None], world_env.get_internal()[None])[0])
        estimates = [estimator(np.array(tiles), SequenceSource(spec, 1).every(), generator) for _ in range(4)]
        assert spearmanr(np.mean(estimates, axis=0), empowerment(world_env.params, 1))[0] >= 0.8


def test_known_dynamics_of_a_function_are_imagined_with() -> None:
    spec = make_spec(2, spaces.Discrete(2))
    known = KnownDynamics(spec, lambda observation, internal, action: (observation + action[:, None], internal))
    estimator = LikelihoodEstimator(known, Outcomes(spec, [0, 1]))
    value = estimator(np.zeros((1, 3), np.float32), SequenceSource(spec, 2).every(), np.random.default_rng(0))
    # Sums of two bits: 0, 1, 1, 2. Half of a bit each for the outcomes 0 and 2, and half of one for the other two.
    expected = 0.5 * math.log(0.95 * 4 + 0.05) + 0.5 * math.log(0.95 * 2 + 0.05)
    assert value[0] == pytest.approx(expected, rel=1e-4)
