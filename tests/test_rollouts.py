"""Imagined futures against closed forms, brute force, and what a frozen plan would have said."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.draws import Noise
from persist_sb3.models.safety import SafetyNetwork
from persist_sb3.models.spec import StateSpec
from persist_sb3.models.viability import ViabilityCritic
from persist_sb3.shield import EnumeratedShield
from persist_sb3.shield.amortised import AmortisedVerifier
from persist_sb3.shield.criteria import cvar
from persist_sb3.shield.decision import NONE
from persist_sb3.shield.rollouts import CriticBackup, PolicyBackup, RolloutVerifier
from persist_sb3.shield.sketch import Sketch
from persist_sb3.viability import ViabilitySet

Floats = NDArray[np.float32]
NOWHERE = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)


def make_spec(constraints: list[str], dims: list[str], mu: list[float], actions: spaces.Space[Any]) -> StateSpec:
    return StateSpec(NOWHERE, actions, ViabilitySet(constraints, dims, mu=mu))


def state_of(*internal: Any) -> Floats:
    """States whose observation says nothing, a row each."""
    rows = np.array(np.broadcast_arrays(*internal), dtype=np.float32).reshape(len(internal), -1).T
    return np.concatenate([np.zeros((len(rows), 1), dtype=np.float32), rows], axis=1)


class Walk:
    """
    A coin decides whether ``purse`` rises or falls by 1; at ``goal`` it stays. Of two members, one has a fair coin,
    the other a loaded one.
    """

    def __init__(self, up: tuple[float, ...], goal: float = math.inf) -> None:
        self.up, self.goal, self.members = np.array(up), goal, len(up)

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        state = state.copy()
        assert noise is not None
        rises = noise.random((len(state), 1))[:, 0] < self.up[members]
        state[:, 1] += np.where(state[:, 1] >= self.goal, 0.0, np.where(rises, 1.0, -1.0))
        return state


class Drive:
    """``place`` moves by -1, 0 or 1, as the action says."""

    members = 1

    def __init__(self) -> None:
        self.steps = 0

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        self.steps += 1
        state = state.copy()
        state[:, 1] += action.argmax(axis=1) - 1
        return state


class Broken(Drive):
    """Foresees nothing."""

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        return np.full_like(state, np.nan)


class Likeliest(Drive):
    """One more, unless chance is drawn."""

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        assert noise is None and not members.any()
        return state + np.array([0.0, 1.0], dtype=np.float32)


PURSE = make_spec(["purse >= 0.5"], ["purse"], [4.5], spaces.Discrete(2))
PLACE = make_spec(["place >= 0", "place <= 4"], ["place"], [2.0], spaces.Discrete(3))
HOLD = PolicyBackup(PURSE, lambda o, x: np.zeros(len(x), dtype=np.int64))
BACK = PolicyBackup(PLACE, lambda o, x: 1 + np.sign(2.0 - x[:, 0]).astype(np.int64))
COIN = np.array([[1.0, 0.0]], dtype=np.float32)


@pytest.mark.parametrize("up", [0.5, 0.45, 0.6])
@pytest.mark.parametrize("start", [1, 3, 5])
def test_p_safe_is_that_of_the_gamblers_ruin(up: float, start: int) -> None:
    goal = 6
    odds = (1 - up) / up
    ruin = 1 - start / goal if up == 0.5 else (odds**start - odds**goal) / (1 - odds**goal)
    verifier = RolloutVerifier(PURSE, Walk((up,), goal), HOLD, horizon=250, rollouts=4000)
    assert verifier(state_of(start), COIN).p_safe[0] == pytest.approx(1 - ruin, abs=4 * math.sqrt(0.25 / 4000))


def test_p_safe_within_a_horizon_by_the_reflection_principle() -> None:
    horizon, start = 9, 3
    ends = np.array([2 * k - horizon for k in range(horizon + 1)])
    law = np.array([math.comb(horizon, k) for k in range(horizon + 1)]) / 2**horizon
    survives = law[ends > -start].sum() - law[ends < -start].sum()
    verifier = RolloutVerifier(PURSE, Walk((0.5,)), HOLD, horizon=horizon, rollouts=8000)
    assert verifier(state_of(start), COIN).p_safe[0] == pytest.approx(survives, abs=0.02)


def test_a_future_follows_one_member_throughout() -> None:
    # One member always wins, the other always loses: half of the futures are safe, and none is in between.
    futures = RolloutVerifier(PURSE, Walk((1.0, 0.0)), HOLD, horizon=4, rollouts=10).imagine(state_of(2), COIN)
    assert futures.slack[0].tolist() == [0.625, -0.125] * 5  # purse 3 and 0, by which it breaks: (x - 0.5) / 4
    assert futures.step[0].tolist() == [NONE, 2] * 5


def test_cvar_of_a_random_walk() -> None:
    class Diffusion(Walk):
        def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
            assert noise is not None
            state = state.copy()
            state[:, 1] += 2.0 * noise.standard_normal((len(state), 1))[:, 0]
            return state

    verifier = RolloutVerifier(PURSE, Diffusion((0.5,)), HOLD, 0.9, horizon=1, rollouts=20_000, criterion="cvar")
    # Scaled by 4, the margin after a step is normal with deviation 0.5; CVaR 0.1 is then mean - 1.755 * 0.5.
    for purse, expected in ((0.5 + 4 * 0.95, True), (0.5 + 4 * 0.80, False)):
        slack = verifier.imagine(state_of(purse), COIN).slack
        assert cvar(slack, 0.1)[0] == pytest.approx((purse - 0.5) / 4 - 0.5 * 1.755, abs=0.02)
        assert verifier(state_of(purse), COIN).safe[0] == expected


def test_the_continuation_reacts_where_a_frozen_plan_would_go_on() -> None:
    left = PLACE.encode_action(np.array([0]))
    frozen = RolloutVerifier(PLACE, Drive(), PolicyBackup(PLACE, lambda o, x: np.zeros(len(x), np.int64)))
    assert not frozen(state_of(2.0), left).safe[0]
    assert RolloutVerifier(PLACE, Drive(), BACK)(state_of(2.0), left).safe[0]
    assert not RolloutVerifier(PLACE, Drive(), BACK)(state_of(0.0), left).safe[0]


def critic_that_likes(action: int, value: float) -> ViabilityCritic:
    """Values this action so, and the others at one less, wherever it is; the second constraint is in more danger."""
    critic = ViabilityCritic(PLACE, net_arch=[4], members=2)
    with torch.no_grad():
        critic.critics.weights[-1].zero_()
        values = torch.full((3, 3), value - 1.0)
        values[action] = value
        values[:, 1] += 0.5
        critic.critics.biases[-1].copy_(values.reshape(1, 1, -1))
    return critic


def test_the_critic_goes_on_and_has_the_last_word() -> None:
    right = PLACE.encode_action(np.array([2]))
    for action, value, horizon, safe in ((0, 0.5, 3, True), (0, 0.1, 3, False), (2, 0.5, 3, False), (2, 0.5, 1, True)):
        critic = CriticBackup(critic_that_likes(action, value))
        verifier = RolloutVerifier(PLACE, Drive(), critic, horizon=horizon, threshold=0.2)
        assert verifier(state_of(2.0), right).safe[0] == safe, (action, value, horizon)
    # Where only the value at the end is too low, it is what the verdict is about.
    verdict = RolloutVerifier(PLACE, Drive(), CriticBackup(critic_that_likes(1, 0.1)), horizon=2)(state_of(2.0), right)
    assert verdict.constraint[0] == 1 and verdict.step[0] == NONE
    assert verdict.margin[0] == verdict.score[0] == pytest.approx(0.1)


def test_what_breaks_when_and_by_how_much() -> None:
    right, left = PLACE.encode_action(np.array([2])), PLACE.encode_action(np.array([0]))
    run = RolloutVerifier(PLACE, Drive(), PolicyBackup(PLACE, lambda o, x: np.full(len(x), 2)), horizon=6)
    verdict = run(state_of([2.0, 4.0, -3.0]), np.repeat(right, 3, axis=0))
    assert verdict.step.tolist() == [3, 1, 1]
    assert verdict.constraint.tolist() == [1, 1, 0]
    # Where an episode would be over, nothing further is counted: margins are scaled by 2.
    assert verdict.margin.tolist() == [-0.5, -0.5, -1.0]
    stay = RolloutVerifier(PLACE, Drive(), BACK, horizon=6)(state_of(2.0), left)
    assert (stay.step[0], stay.constraint[0], stay.margin[0], stay.p_safe[0]) == (NONE, 0, 0.5, 1.0)


def test_of_two_constraints_the_one_that_fails_more_often_is_named() -> None:
    spec = make_spec(["purse >= 0.5", "purse <= 8.5"], ["purse"], [4.5], spaces.Discrete(2))
    for up, constraint in ((0.35, 0), (0.65, 1)):
        hold = PolicyBackup(spec, lambda o, x: np.zeros(len(x), dtype=np.int64))
        verifier = RolloutVerifier(spec, Walk((up,)), hold, horizon=101, rollouts=400)
        futures, verdict = verifier.imagine(state_of(4), COIN), verifier(state_of(4), COIN)
        broken = futures.step[0][(futures.constraint[0] == constraint) & (futures.slack[0] < 0)]
        assert verdict.constraint[0] == constraint and len(broken) > 200
        assert (broken < verdict.step[0]).mean() <= 0.5 <= (broken <= verdict.step[0]).mean()


def test_nothing_depends_on_who_else_is_judged() -> None:
    verifier = RolloutVerifier(PURSE, Walk((0.4, 0.5, 0.6)), HOLD, horizon=12, rollouts=30)
    together = verifier(state_of([1, 2, 3, 2]), np.repeat(COIN, 4, axis=0))
    for row, start in enumerate((1, 2, 3, 2)):
        alone = verifier(state_of(start), COIN)
        for name in alone.__slots__:
            assert getattr(alone, name)[0] == getattr(together, name)[row], name
    global_state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    verifier(state_of(2), COIN)
    np.testing.assert_array_equal(global_state, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


def test_states_meet_different_chance() -> None:
    starts = np.linspace(2.0, 2.01, 200)
    p_safe = RolloutVerifier(PURSE, Walk((0.5,)), HOLD, horizon=9, rollouts=16)(
        state_of(starts), np.repeat(COIN, 200, axis=0)
    ).p_safe
    mean, deviation = p_safe.mean(), math.sqrt(p_safe.mean() * (1 - p_safe.mean()) / 16)
    assert p_safe.std() == pytest.approx(deviation, rel=0.2), mean


def test_one_call_of_the_dynamics_a_step() -> None:
    drive = Drive()
    RolloutVerifier(PLACE, drive, BACK, horizon=7, rollouts=20)(
        state_of(np.ones(50)), PLACE.encode_action(np.ones(50, dtype=np.int64))
    )
    assert drive.steps == 7


def test_dynamics_that_fail_are_not_trusted() -> None:
    stay = PLACE.encode_action(np.array([1]))
    for criterion in ("probability", "worst_case", "cvar"):
        verifier = RolloutVerifier(PLACE, Broken(), CriticBackup(critic_that_likes(1, 0.9)), criterion=criterion)
        verdict = verifier(state_of(2.0), stay)
        assert not verdict.safe[0] and verdict.p_safe[0] == 0.0 and np.isnan(verdict.score[0])


def test_a_sketch_outlines_one_future_without_chance() -> None:
    # From place 3: right, then left, as the critic likes it, so 4, 3, 2. Margins of both limits are scaled by 2.
    right = PLACE.encode_action(np.array([2]))
    critic = CriticBackup(critic_that_likes(0, 0.5))
    margins, values = [[2.0, 0.0], [1.5, 0.5], [1.0, 1.0]], [0.5, 1.0, 0.5]
    outline = Sketch(PLACE, Drive(), critic, 3)(state_of(3.0), right)
    np.testing.assert_allclose(outline, [np.concatenate([[*margin, *values] for margin in margins])])
    # A policy has no values. Chance would win or lose the whole purse.
    outline = Sketch(PURSE, Likeliest(), HOLD, 2)(state_of([1.0, 2.0]), np.repeat(COIN, 2, axis=0))
    np.testing.assert_allclose(outline, [[0.375, 0.625], [0.625, 0.875]])


@pytest.mark.parametrize("failing", [False, True])
def test_what_a_network_says_of_a_sketch_that_failed_is_not_trusted(failing: bool) -> None:
    critic, network = critic_that_likes(1, 0.9), SafetyNetwork(PLACE, valued=True, foresight=1)
    with torch.no_grad():
        network.network.biases[-1].fill_(10.0)
    sketch = Sketch(PLACE, Broken() if failing else Drive(), CriticBackup(critic), 1)
    verdict = AmortisedVerifier(network, critic, sketch, 0.9)(state_of(2.0), PLACE.encode_action(np.array([1])))
    assert verdict.safe[0] != failing and np.isnan(verdict.score[0]) == failing


@pytest.mark.parametrize(
    ("key", "value"), [("conf", 0.0), ("conf", 1.1), ("horizon", 0), ("rollouts", 0), ("criterion", "var")]
)
def test_parameters_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{key}="):
        RolloutVerifier(PLACE, Drive(), BACK, **{key: value})


class Table:
    """A deterministic world of 12 places, each with a margin, and two controls: where each joint action leads."""

    members = 1

    def __init__(self, generator: np.random.Generator) -> None:
        self.next = generator.integers(12, size=(12, 6))
        self.health = generator.uniform(-0.3, 1.0, 12).astype(np.float32)

    def step(self, state: Floats, action: Floats, members: NDArray[np.intp], noise: Noise | None) -> Floats:
        digits = action[:, :2].argmax(axis=1) * 3 + action[:, 2:].argmax(axis=1)
        place = self.next[state[:, 0].astype(int), digits]
        return np.stack([place, self.health[place]], axis=1).astype(np.float32)


def follow(spec: StateSpec, habit: NDArray[np.int64], place: Floats, health: Floats) -> NDArray[Any]:
    return spec.actions[habit[place[:, 0].astype(int)]]


def test_search_finds_what_brute_force_finds() -> None:
    generator = np.random.default_rng(0)
    controls = spaces.MultiDiscrete([2, 3])
    spec = StateSpec(
        spaces.Box(0.0, 12.0, (1,), dtype=np.float32), controls, ViabilitySet(["health >= 0"], ["health"], mu=[1.0])
    )
    refused = 0
    for _ in range(20):
        world = Table(generator)
        habit = generator.integers(6, size=12)
        policy = PolicyBackup(spec, partial(follow, spec, habit))
        shield = EnumeratedShield(spec, None, 0.0, verifier=RolloutVerifier(spec, world, policy, 1.0, 4, 1))

        def stays_alive(place: int, action: int, world: Table = world, habit: Any = habit) -> bool:
            for _ in range(4):
                place = world.next[place, action]
                if world.health[place] < 0:
                    return False
                action = habit[place]
            return True

        places = np.arange(12)
        state = np.stack([places, world.health], axis=1).astype(np.float32)
        proposed = generator.integers(6, size=12)
        decision = shield.decide(state, spec.actions[proposed])
        permitted = shield.permitted(state)
        for place in places:
            alive = np.array([stays_alive(int(place), action) for action in range(6)])
            changes = (spec.actions != spec.actions[proposed[place]]).sum(axis=1)
            if alive.any():
                nearest = changes[alive].min()
                chosen = spec.index(decision.action[place : place + 1])[0]
                assert alive[chosen] and changes[chosen] == nearest and not decision.infeasible[place]
                np.testing.assert_array_equal(permitted[place], alive)
                refused += int(nearest > 0)
            else:
                assert decision.infeasible[place] and permitted[place].sum() == 1
    assert refused > 20
