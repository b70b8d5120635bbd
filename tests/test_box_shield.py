"""The shield over real-valued actions: the nearest safe action, against grids and closed forms."""

from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.models.spec import StateSpec
from persist_sb3.shield import BoxShield, Verdict
from persist_sb3.shield.projection import Search, cem, gradient, onto_halfspace
from persist_sb3.streams import Streams
from persist_sb3.viability import ViabilitySet
from persist_sb3.wrappers import ActionShield, InternalState
from tests.toys import Walker

Floats = NDArray[np.float32]
VIABILITY = ViabilitySet(["battery >= 0.2", "heat <= 0.8"], ["battery", "heat"])
PROJECTIONS = ["cem", "gradient"]


class Rules:
    """
    Stands in for a critic whose values are known. The state says which rule holds: the number of the row, and whether
    the safe actions are those beyond a plane (``normal . a >= offset``) or within a ball (``|a - normal| <= offset``).
    """

    def __init__(self, normal: Floats, offset: Floats, ball: bool, lift: float = 0.0) -> None:
        self.normal, self.offset, self.ball, self.lift = normal, offset, ball, lift

    def score(self, state: Floats, action: Floats) -> Floats:
        row = state[:, 0].astype(int)
        if self.ball:
            return self.offset[row] - np.linalg.norm(action - self.normal[row], axis=1) + self.lift
        return (action * self.normal[row]).sum(axis=1) - self.offset[row] + self.lift

    def action_values(self, state: Floats, action: Floats) -> Floats:
        each = state if action.ndim == 2 else np.repeat(state, action.shape[1], axis=0)
        score = self.score(each, action.reshape(len(each), -1)).reshape(action.shape[:-1])
        return np.stack([score, score + 1.0, score], axis=-1).astype(np.float32)

    def action_slopes(self, state: Floats, action: Floats) -> tuple[Floats, Floats]:
        row = state[:, 0].astype(int)
        slope = self.normal[row]
        if self.ball:
            away = self.normal[row] - action
            slope = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
        return self.score(state, action).astype(np.float32), slope.astype(np.float32)

    def best_action(self, state: Floats) -> Floats:
        row = state[:, 0].astype(int)
        return self.normal[row] if self.ball else np.sign(self.normal[row])


def make(size: int, ball: bool, n: int = 100, lift: float = 0.0, seed: int = 0, **more: Any) -> Any:
    """
    :return: a shield with a threshold of 0, its rules, the states in which they hold, and proposed actions
    """
    generator = np.random.default_rng(seed)
    high = np.arange(1, size + 1, dtype=np.float32)
    space = spaces.Box(-high, high + 1.0, dtype=np.float32)
    spec = StateSpec(spaces.Box(-np.inf, np.inf, (1,)), space, VIABILITY)
    normal = generator.uniform(-0.5, 0.5, (n, size)).astype(np.float32)
    offset = generator.uniform(0.2, 0.6, n).astype(np.float32)
    if not ball:
        offset *= np.abs(normal).sum(axis=1)
    states = np.zeros((n, spec.state_dim), dtype=np.float32)
    states[:, 0] = np.arange(n)
    rules: Any = Rules(normal, offset, ball, lift)
    streams = Streams(n)
    streams.seed(np.arange(n), np.arange(n, dtype=np.uint64))
    proposed = spec.decode_action(generator.uniform(-1.0, 1.0, (n, size)))
    return BoxShield(spec, rules, 0.0, streams, **more), spec, rules, states, proposed


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize(("size", "tolerance"), [(1, 0.01), (2, 0.05)])
@pytest.mark.parametrize("ball", [True, False], ids=["ball", "plane"])
def test_the_nearest_safe_action_of_a_grid(ball: bool, size: int, tolerance: float, projection: Any) -> None:
    shield, spec, rules, states, proposed = make(size, ball, n=60, projection=projection)
    decision = shield.decide(states, proposed)
    before, after = spec.encode_action(proposed), spec.encode_action(decision.action)
    ticks = np.linspace(-1.0, 1.0, 2001 if size == 1 else 201)
    grid = np.array(list(product(ticks, repeat=size)), dtype=np.float32)
    for i in range(len(states)):
        safe = rules.score(np.repeat(states[i : i + 1], len(grid), axis=0), grid) >= 0.0
        nearest = np.linalg.norm(grid - before[i], axis=1)[safe].min()
        if rules.score(states[i : i + 1], before[i : i + 1])[0] >= 0.0:
            assert not decision.intervened[i]
            np.testing.assert_array_equal(decision.action[i], proposed[i])
        else:
            assert decision.intervened[i]
            assert rules.score(states[i : i + 1], after[i : i + 1])[0] >= -1e-5
            # Up to the grid's own distance.
            assert np.linalg.norm(after[i] - before[i]) <= nearest + tolerance
    assert not decision.infeasible.any()
    assert 10 < decision.intervened.sum() < 60


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("inset", [0.0, 0.5, 1.0])
def test_an_inset_goes_on_toward_the_safest(inset: float, projection: Any) -> None:
    shield, spec, rules, states, proposed = make(2, ball=True, projection=projection, inset=inset)
    decision = shield.decide(states, proposed)
    before, after = spec.encode_action(proposed), spec.encode_action(decision.action)
    refused = rules.score(states, before) < 0.0
    assert 10 < refused.sum() < 100
    np.testing.assert_array_equal(decision.intervened, refused)
    # The value falls with the distance from the centre, where it is `offset`.
    away = before - rules.normal
    inside = rules.normal + away / np.linalg.norm(away, axis=1, keepdims=True) * (1.0 - inset) * rules.offset[:, None]
    within = refused & (np.abs(inside) <= 1.0).all(axis=1)
    np.testing.assert_allclose(after[within], inside[within], atol=0.05)
    assert not decision.infeasible.any()


@pytest.mark.parametrize("size", [4, 8])
def test_linearising_finds_the_foot_of_the_perpendicular(size: int) -> None:
    shield, spec, rules, states, proposed = make(size, ball=False, projection="gradient")
    decision = shield.decide(states, proposed)
    before, after = spec.encode_action(proposed), spec.encode_action(decision.action)
    short = -rules.score(states, before)
    foot = before + (short / np.square(rules.normal).sum(axis=1))[:, None] * rules.normal
    inner = decision.intervened & (np.abs(foot) <= 0.98).all(axis=1)
    assert inner.sum() > 10
    np.testing.assert_allclose(after[inner], foot[inner], atol=0.03)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_the_projection_onto_a_half_space_in_a_box_meets_its_conditions(size: int) -> None:
    """It is the nearest point exactly if it is ``clip(action + l * direction)`` and reaches what is needed exactly."""
    generator = np.random.default_rng(0)
    action = generator.uniform(-1.0, 1.0, (500, size))
    direction = generator.normal(size=(500, size))
    most = np.abs(direction).sum(axis=1) - (direction * action).sum(axis=1)
    needed = generator.uniform(0.0, 1.0, 500) * most
    moved = onto_halfspace(action, direction, needed)
    np.testing.assert_allclose((direction * (moved - action)).sum(axis=1), needed, atol=1e-9)
    free = np.abs(moved) < 1.0 - 1e-9
    steps = np.divide(moved - action, direction)
    multiplier = np.where(free, steps, -np.inf).max(axis=1)
    some = free.any(axis=1)
    assert some.sum() > 100
    np.testing.assert_allclose(np.where(free, steps, multiplier[:, None])[some], multiplier[some, None].repeat(size, 1))
    assert (np.where(free, multiplier[:, None], steps)[some] <= multiplier[some, None] + 1e-9).all()


def test_a_half_space_out_of_reach_is_approached() -> None:
    moved = onto_halfspace(np.zeros((1, 2)), np.array([[1.0, -2.0]]), np.array([10.0]))
    np.testing.assert_array_equal(moved, [[1.0, -1.0]])
    np.testing.assert_array_equal(onto_halfspace(np.full((1, 2), 0.5), np.zeros((1, 2)), np.array([1.0])), [[0.5, 0.5]])


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_where_nothing_passes_the_safest_is_taken(projection: Any) -> None:
    shield, spec, rules, states, proposed = make(2, ball=True, lift=-2.0, projection=projection)
    decision = shield.decide(states, proposed)
    assert decision.infeasible.all()
    # The safest action is the centre of the ball.
    after = spec.encode_action(decision.action)
    np.testing.assert_allclose(after, rules.normal, atol=1e-5)
    np.testing.assert_allclose(decision.executed.score, rules.offset - 2.0, atol=1e-5)


def test_replacing_executes_the_safe_actor() -> None:
    shield, spec, rules, states, proposed = make(3, ball=False, correction="replace")
    decision = shield.decide(states, proposed)
    refused = rules.score(states, spec.encode_action(proposed)) < 0.0
    assert 10 < refused.sum() < 100
    expected = np.where(refused[:, None], spec.decode_action(np.sign(rules.normal)), proposed)
    np.testing.assert_allclose(decision.action, expected, atol=1e-6)


def test_verdicts_are_those_of_the_proposed_and_of_the_executed_action() -> None:
    shield, spec, rules, states, proposed = make(2, ball=True)
    decision = shield.decide(states, proposed)
    for verdict, action in ((decision.proposed, proposed), (decision.executed, decision.action)):
        np.testing.assert_allclose(verdict.score, rules.score(states, spec.encode_action(action)), atol=1e-5)
    assert (decision.proposed.constraint == 1).all()


def test_an_action_beyond_its_limits_is_judged_as_if_clipped() -> None:
    shield, spec, rules, states, _ = make(2, ball=False)
    corner = spec.decode_action(np.sign(rules.normal))
    beyond = corner + 5.0 * np.sign(rules.normal)
    decision = shield.decide(states, beyond)
    assert not decision.intervened.any()
    np.testing.assert_array_equal(decision.action, beyond)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_one_environment_is_answered_as_among_others(projection: Any) -> None:
    together, _, _, states, proposed = make(2, ball=True, projection=projection)
    expected = together.decide(states, proposed)
    for i in np.flatnonzero(expected.intervened)[:10]:
        alone, *_ = make(2, ball=True, projection=projection)
        alone._streams = Streams(1)
        alone._streams.seed(np.array([0]), np.array([i], dtype=np.uint64))
        decision = alone.decide(states[i : i + 1], proposed[i : i + 1])
        np.testing.assert_allclose(decision.action[0], expected.action[i], atol=1e-5)


class Half:
    """A verifier: passes actions whose first component is at most ``limit``, and remembers what it was asked."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.asked: list[Floats] = []

    def __call__(self, state: Floats, action: Floats) -> Verdict:
        self.asked.append(action)
        slack = (self.limit - action[:, 0]).astype(np.float32)
        rows = len(action)
        constraint, step = np.zeros(rows, dtype=np.intp), np.zeros(rows, dtype=np.intp)
        return Verdict(slack >= 0.0, slack, np.ones(rows, dtype=np.float32), constraint, slack, step)


def test_the_verifier_decides_within_the_band() -> None:
    # The critic's values are those of a plane, -a - 0.1; the verifier is less strict.
    verifier = Half(0.05)
    shield, spec, rules, states, _ = make(1, ball=False, n=4, verifier=verifier, band=0.3)
    rules.normal, rules.offset = np.full((4, 1), -1.0, dtype=np.float32), np.full(4, 0.1, dtype=np.float32)
    decision = shield.decide(states, spec.decode_action(np.array([[-0.9], [0.0], [0.15], [0.9]])))
    after = spec.encode_action(decision.action)[:, 0]
    # Sure; within the band, and verified; within the band, and refused; surely refused.
    np.testing.assert_array_equal(decision.intervened, [False, False, True, True])
    assert -0.1 <= after[2] <= 0.05 and -0.4 <= after[3] <= 0.05
    assert not decision.infeasible.any()
    for asked in verifier.asked:
        assert (np.abs(-asked[:, 0] - 0.1) < 0.3).all()


@pytest.mark.parametrize("method", PROJECTIONS)
def test_what_is_not_a_number_passes_nowhere(method: str) -> None:
    def value(actions: Floats) -> Floats:
        return np.where(actions[..., 0] > 0.0, np.nan, -actions[..., 0] - 0.5).astype(np.float32)

    def slope(actions: Floats) -> tuple[Floats, Floats]:
        return value(actions), np.full_like(actions, -1.0)

    search = Search(value, np.array([[0.5]], dtype=np.float32), np.array([[-1.0]], dtype=np.float32), 0.0)
    noise = np.random.default_rng(0).standard_normal((5, 1, 32, 1)).astype(np.float32)
    found = cem(search, noise) if method == "cem" else gradient(search, slope, 5)
    assert -0.6 < found[0, 0] <= -0.5


def walker(action: str = "box") -> gym.Env[Any, Any]:
    return InternalState(
        Walker(action=action),
        dims=["battery", "heat"],
        sources={"battery": "obs[0]", "heat": "obs[1]"},
        constraints=["battery >= 0.2"],
        mu=[0.8, 0.5],
    )


def test_box_actions_cannot_be_masked() -> None:
    with pytest.raises(RuntimeError, match="correction='mask' cannot mask Box"):
        ActionShield(walker(), correction="mask")


@pytest.mark.parametrize("inset", [-0.1, 1.5, float("nan")])
def test_an_inset_is_a_share(inset: float) -> None:
    with pytest.raises(ValueError, match=rf"inset={inset} must be in \[0, 1\]"):
        ActionShield(walker(), inset=inset)


def test_an_unknown_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="projection='newton' must be 'cem' or 'gradient'"):
        ActionShield(walker(), projection="newton")
