"""The shield over countable actions: the nearest safe action, by brute force; masks; what happens when none passes."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from persist_sb3.models.spec import StateSpec
from persist_sb3.shield import EnumeratedShield, Verdict
from persist_sb3.shield.decision import NONE
from persist_sb3.viability import ViabilitySet

VIABILITY = ViabilitySet(["battery >= 0.2", "heat <= 0.8"], ["battery", "heat"])
THRESHOLD = 0.2
SPACES = {
    "discrete": spaces.Discrete(5, start=2),
    "multidiscrete": spaces.MultiDiscrete([3, 4, 2], start=[1, 0, -1]),
    "multibinary": spaces.MultiBinary(4),
}


class Table:
    """Stands in for a critic: the values of every action are the state's first entries, overall and by constraint."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.table = values

    def values(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.table[state[:, 0].astype(int)]


def make_spec(space: spaces.Space[Any]) -> StateSpec:
    return StateSpec(spaces.Box(-np.inf, np.inf, (1,)), space, VIABILITY)


def make(space: spaces.Space[Any], n: int = 200, correction: Any = "project", **more: Any) -> Any:
    """
    :return: a shield, its spec, the values of all actions in ``n`` states, those states, and proposed actions
    """
    spec = make_spec(space)
    generator = np.random.default_rng(0)
    values = generator.normal(0.0, 0.3, (n, len(spec.actions), 3)).astype(np.float32)
    states = np.zeros((n, spec.state_dim), dtype=np.float32)
    states[:, 0] = np.arange(n)
    proposed = spec.actions[generator.integers(len(spec.actions), size=n)]
    critic: Any = Table(values)
    return EnumeratedShield(spec, critic, THRESHOLD, correction, **more), spec, values, states, proposed


def brute_force(values: NDArray[Any], actions: NDArray[Any], proposed: Any, correction: str) -> tuple[int, bool]:
    """
    :return: which action one state's shield must execute, and whether none passes
    """
    scores = [float(row[0]) for row in values]
    passing = [i for i, score in enumerate(scores) if score >= THRESHOLD]
    own = next(i for i, action in enumerate(actions) if np.array_equal(action, proposed))
    if own in passing:
        return own, False
    if not passing:
        return scores.index(max(scores)), True
    if correction == "replace":
        return scores.index(max(scores)), False
    changes = {i: np.count_nonzero(actions[i] != proposed) for i in passing}
    return min(passing, key=lambda i: (changes[i], -scores[i])), False


@pytest.mark.parametrize("correction", ["project", "replace", "mask"])
@pytest.mark.parametrize("kind", SPACES)
def test_the_nearest_safe_action(kind: str, correction: str) -> None:
    shield, spec, values, states, proposed = make(SPACES[kind], correction=correction)
    values[:20] -= 2.0  # Nothing passes there.
    decision = shield.decide(states, proposed)
    for i in range(len(states)):
        expected, infeasible = brute_force(values[i], spec.actions, proposed[i], correction)
        np.testing.assert_array_equal(decision.action[i], spec.actions[expected], err_msg=str(i))
        assert decision.infeasible[i] == infeasible
        assert decision.intervened[i] == (not np.array_equal(decision.action[i], proposed[i]))
        own = int(spec.index(proposed[i : i + 1])[0])
        assert decision.proposed.score[i] == values[i, own, 0]
        assert decision.executed.score[i] == values[i, expected, 0]
        # The constraint in danger is that with the least value of its own.
        assert decision.proposed.constraint[i] == values[i, own, 1:].argmin()
        assert decision.proposed.margin[i] == values[i, own, 1:].min()
    assert decision.infeasible[:20].all() and not decision.infeasible[20:].all()
    assert decision.action.dtype == proposed.dtype
    np.testing.assert_array_equal(decision.proposed_action, proposed)
    assert np.isnan(decision.proposed.p_safe).all() and (decision.proposed.step == NONE).all()


@pytest.mark.parametrize("kind", SPACES)
def test_no_environment_depends_on_the_others(kind: str) -> None:
    shield, _, values, states, proposed = make(SPACES[kind])
    values[3] *= 1e6
    together = shield.decide(states, proposed)
    permitted = shield.permitted(states)
    for i in range(len(states)):
        alone = shield.decide(states[i : i + 1], proposed[i : i + 1])
        np.testing.assert_array_equal(together.action[i], alone.action[0])
        np.testing.assert_array_equal(permitted[i], shield.permitted(states[i : i + 1])[0])


def test_permitted_actions_are_those_that_pass_or_else_the_safest() -> None:
    shield, spec, values, states, _ = make(SPACES["multidiscrete"])
    values[:20] -= 2.0
    permitted = shield.permitted(states)
    np.testing.assert_array_equal(permitted[20:], values[20:, :, 0] >= THRESHOLD)
    np.testing.assert_array_equal(permitted[:20], np.eye(len(spec.actions), dtype=bool)[values[:20, :, 0].argmax(1)])


def test_a_permitted_action_is_never_changed() -> None:
    shield, spec, values, states, _ = make(SPACES["discrete"], correction="mask")
    values[:20] -= 2.0
    row, column = np.nonzero(shield.permitted(states))
    decision = shield.decide(states[row], spec.actions[column])
    assert not decision.intervened.any()


@pytest.mark.parametrize("correction", ["project", "replace"])
def test_what_was_permitted_is_decided_alike_and_not_judged_again(correction: str) -> None:
    shield, _, values, states, proposed = make(SPACES["multidiscrete"], correction=correction)
    values[:20] -= 2.0
    fresh = shield.decide(states, proposed)
    shield.permitted(states)
    values += 5.0  # a critic that learns meanwhile
    decision = shield.decide(states, proposed)
    np.testing.assert_array_equal(decision.action, fresh.action)
    np.testing.assert_array_equal(decision.infeasible, fresh.infeasible)
    for name in Verdict.__slots__:
        np.testing.assert_array_equal(getattr(decision.proposed, name), getattr(fresh.proposed, name))
        np.testing.assert_array_equal(getattr(decision.executed, name), getattr(fresh.executed, name))
    # Once: whoever decides again, or about other states or another threshold, wants to know what is so now.
    assert not shield.decide(states, proposed).intervened.any()
    shield.permitted(states)
    values -= 5.0
    assert shield.decide(states[::-1], proposed).intervened.any()


def test_what_is_not_a_number_passes_nowhere() -> None:
    shield, _, values, states, proposed = make(SPACES["discrete"])
    values[0] = np.nan
    values[1] = np.inf
    values[2, 1:] = np.nan
    values[2, 0] = 1.0
    permitted = shield.permitted(states)
    assert not permitted[:2].any()
    assert permitted[2].tolist() == [True, False, False, False, False]
    decision = shield.decide(states, proposed)
    assert not np.isfinite(decision.executed.score[:2]).any()
    assert decision.executed.score[2] == 1.0
    clean, _, _, _, _ = make(SPACES["discrete"])
    np.testing.assert_array_equal(decision.action[3:], clean.decide(states, proposed).action[3:])


def test_the_verifier_decides_within_the_band_and_nowhere_else() -> None:
    asked: list[int] = []

    def verifier(state: NDArray[np.float32], action: NDArray[Any]) -> Verdict:
        asked.append(len(state))
        n = len(state)
        safe = action[:, 0] == 1.0  # Only the first action is.
        return Verdict(
            safe, np.ones(n, np.float32), np.full(n, 0.5, np.float32), np.ones(n, int), -np.ones(n, np.float32),
            np.full(n, 4),
        )  # fmt: skip

    shield, spec, values, states, _ = make(SPACES["discrete"], n=50, verifier=verifier, band=0.1)
    permitted = shield.permitted(states)
    unsure = np.abs(values[:, :, 0] - THRESHOLD) < 0.1
    assert asked == [unsure.sum()]
    expected = np.where(unsure, np.arange(5) == 0, values[:, :, 0] >= THRESHOLD)
    some = expected.any(axis=1)
    np.testing.assert_array_equal(permitted[some], expected[some])
    everywhere = shield.decide(states, np.full(50, spec.actions[1]))
    np.testing.assert_array_equal(everywhere.proposed.p_safe == 0.5, unsure[:, 1])
    np.testing.assert_array_equal(everywhere.proposed.step == 4, unsure[:, 1])


def test_without_a_critic_the_verifier_judges_everything() -> None:
    def verifier(state: NDArray[np.float32], action: NDArray[Any]) -> Verdict:
        values = np.stack([action[:, 3], action[:, 3]], axis=1)
        return Verdict.by_critic(values.astype(np.float32), 0.5)

    spec = make_spec(SPACES["discrete"])
    shield = EnumeratedShield(spec, None, THRESHOLD, verifier=verifier)
    states = np.zeros((4, spec.state_dim), dtype=np.float32)
    assert shield.permitted(states).tolist() == [[False, False, False, True, False]] * 4
    assert shield.decide(states, spec.actions[:4]).action.tolist() == [5, 5, 5, 5]
