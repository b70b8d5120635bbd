"""Survival curves, recovery, and the records of episodes, against tables and brute force."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from persist_sb3.metrics import (
    EpisodeRecord,
    EpisodeTracker,
    intrinsic_share,
    kaplan_meier,
    read_episodes,
    recovery_outcomes,
    survival_curve,
)
from persist_sb3.viability import ViabilitySet

# Freireich et al. (Blood, 1963): weeks of remission under 6-mercaptopurine; the negative ones are censored.
REMISSION = np.array([6, 6, 6, 7, 10, 13, 16, 22, 23, -6, -9, -10, -11, -17, -19, -20, -25, -32, -32, -34, -35])


def test_published_survival_table() -> None:
    curve = kaplan_meier(np.abs(REMISSION), REMISSION > 0)
    # Time, survival, standard error and log-log 95 % interval, as Stata's `sts list` prints them.
    table = np.array(
        [
            [6, 0.8571, 0.0764, 0.6197, 0.9516],
            [7, 0.8067, 0.0869, 0.5631, 0.9228],
            [10, 0.7529, 0.0963, 0.5032, 0.8894],
            [13, 0.6902, 0.1068, 0.4316, 0.8491],
            [16, 0.6275, 0.1141, 0.3675, 0.8049],
            [22, 0.5378, 0.1282, 0.2678, 0.7468],
            [23, 0.4482, 0.1346, 0.1881, 0.6801],
        ]
    )
    columns = [curve.times, curve.survival, np.sqrt(curve.variance), *curve.interval(0.95)]
    np.testing.assert_allclose(np.transpose(columns), table, atol=6e-5)
    assert curve.median == 23
    assert curve.last == 35
    np.testing.assert_allclose(curve.at([0, 5.9, 6, 6.5, 22, 100]), [1, 1, 0.8571, 0.8571, 0.5378, 0.4482], atol=6e-5)


DURATIONS = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=30)


@given(DURATIONS)
def test_survival_is_the_product_of_what_each_step_leaves(data: list[tuple[int, bool]]) -> None:
    curve = kaplan_meier(*zip(*data, strict=True))
    survival = 1.0
    for time in range(1, 13):
        at_risk = sum(duration >= time for duration, _ in data)
        events = sum(duration == time and observed for duration, observed in data)
        if at_risk:
            survival *= 1 - events / at_risk
        assert curve.at(time) == pytest.approx(survival, abs=1e-12)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_without_censoring_it_is_plain_statistics(durations: list[int]) -> None:
    n = len(durations)
    curve = kaplan_meier(durations, np.ones(n, dtype=bool))
    surviving = np.array([np.mean(np.array(durations) > time) for time in curve.times])
    np.testing.assert_allclose(curve.survival, surviving, atol=1e-12)
    np.testing.assert_allclose(curve.variance, surviving * (1 - surviving) / n, atol=1e-12)
    assert curve.restricted_mean() == pytest.approx(np.mean(durations))
    assert curve.restricted_mean(7.5) == pytest.approx(np.mean(np.minimum(durations, 7.5)))
    assert curve.restricted_mean(1000) == pytest.approx(np.mean(durations))
    assert curve.median == sorted(durations)[math.ceil(n / 2) - 1]


def test_restricted_mean_is_the_area_under_the_curve() -> None:
    # Two die at 2 and 4, one leaves at 3, one at 6: S = 3/4 from 2, 3/8 from 4, and is unknown beyond 6.
    curve = kaplan_meier([2, 3, 4, 6], [True, False, True, False])
    assert curve.restricted_mean() == pytest.approx(2 + 2 * 3 / 4 + 2 * 3 / 8)
    assert curve.restricted_mean(3) == pytest.approx(2 + 3 / 4)
    assert curve.median == 4
    with pytest.raises(ValueError, match="horizon=7 lies beyond the longest duration, 6"):
        curve.restricted_mean(7)


def test_nobody_dies() -> None:
    curve = kaplan_meier([5, 8], [False, False])
    assert (len(curve.times), curve.median, curve.restricted_mean()) == (0, math.inf, 8.0)


@pytest.mark.parametrize(("durations", "observed"), [([], []), ([1, 2], [True]), ([[1]], [[True]])])
def test_lengths_must_agree(durations: Any, observed: Any) -> None:
    with pytest.raises(ValueError, match="must be vectors of one length > 0"):
        kaplan_meier(durations, observed)


# --- recovery

MARGINS = st.lists(st.sampled_from([-0.2, 0.0, 0.05, 0.2, 0.3, 0.9]), min_size=1, max_size=25)
NEAR, CORE = 0.1, 0.3


def fate(margins: list[float], step: int, horizon: int) -> bool | None:
    """What the definition says of one step, word by word; None if it does not count."""
    if not 0 <= margins[step] < NEAR:
        return None
    for later in range(step + 1, step + horizon + 1):
        if later == len(margins):
            return None
        if margins[later] < 0:
            return False
        if margins[later] >= CORE:
            return True
    return False


@settings(max_examples=300)
@given(MARGINS, st.integers(1, 8))
def test_recovery_follows_its_definition(margins: list[float], horizon: int) -> None:
    fates = {step: fate(margins, step, horizon) for step in range(len(margins))}
    expected = {step: known for step, known in fates.items() if known is not None}
    steps, episodes, recovers = recovery_outcomes(np.array(margins)[:, None], NEAR, CORE, horizon)
    assert dict(zip(steps.tolist(), recovers.tolist(), strict=True)) == expected
    assert not episodes.any()


# --- records

VIABILITY = ViabilitySet(["a >= 0", "b <= 1", "a + b >= -0.5"], ["a", "b", "c"])


def brute_record(x: np.ndarray, rewards: np.ndarray, truncated: bool, horizon: int) -> dict[str, Any]:
    margins = np.stack([x[:, 0], 1 - x[:, 1], x[:, 0] + x[:, 1] + 0.5], axis=1)
    smallest = margins.min(axis=1)
    outside = np.flatnonzero(smallest < 0)
    fates = [fate(smallest.tolist(), step, horizon) for step in range(len(x))]
    first = int(outside[0]) if len(outside) else None
    return {
        "length": len(x),
        "terminated": not truncated,
        "truncated": truncated,
        "violated": None if first is None else VIABILITY.constraints[int(margins[first].argmin())].text,
        "violated_at": None if first is None else first + 1,
        "violations": len(outside),
        "min_margin": smallest.min(),
        "satisfaction": {
            constraint.text: np.mean(margins[:, k] >= 0) for k, constraint in enumerate(VIABILITY.constraints)
        },
        "near_steps": sum(known is not None for known in fates),
        "recovered_steps": sum(known is True for known in fates),
        "task_return": rewards[:, 1].sum(),
        "shaped_return": rewards[:, 0].sum(),
        "reward_terms": {"task": rewards[:, 1].sum(), "homeo": rewards[:, 2].sum()},
        "bonuses": {"rnd": rewards[:, 3].sum(), "surprise": rewards[:, 4].sum()},
        "interventions": (rewards[:, 5] > 0.5).sum(),
    }


@settings(max_examples=60)
@given(
    data=st.data(),
    num_envs=st.integers(1, 4),
    steps=st.integers(1, 200),
    horizon=st.integers(1, 6),
    ends=st.sampled_from([0.0, 0.02, 0.3]),
    prompt=st.booleans(),
)
def test_tracker_agrees_with_whole_episodes(
    data: st.DataObject, num_envs: int, steps: int, horizon: int, ends: float, prompt: bool
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    x = rng.choice([-0.1, 0.0, 0.05, 0.25, 0.5, 0.9], (steps, num_envs, 3), p=[0.03, 0.07, 0.2, 0.3, 0.2, 0.2])
    rewards = rng.normal(size=(steps, num_envs, 6))
    done = rng.random((steps, num_envs)) < ends
    truncated = done & (rng.random((steps, num_envs)) < 0.5)
    asked = set(data.draw(st.lists(st.integers(0, steps), max_size=3)))

    kwargs: dict[str, Any] = {"near": NEAR, "core": CORE, "horizon": horizon, "prompt": prompt}
    kwargs |= {"bonuses": ("rnd", "surprise"), "shielded": True}
    tracker = EpisodeTracker(VIABILITY, num_envs, ("task", "homeo"), **kwargs)
    records = []
    violations = 0
    summaries = []
    for t in range(steps):
        terms = {"task": rewards[t, :, 1], "homeo": rewards[t, :, 2]}
        bonuses = {"rnd": rewards[t, :, 3], "surprise": rewards[t, :, 4]}
        intervened = rewards[t, :, 5] > 0.5
        new = tracker.step(x[t], rewards[t, :, 0], terms, done[t], truncated[t], intervened, bonuses)
        assert all(record.timestep == (t + 1) * num_envs for record in new) or not prompt
        records += new
        violations += int((VIABILITY.margins(x[t]).min(axis=1) < 0).sum())
        if t in asked:
            assert tracker.violations == violations
            summaries.append((t + 1, tracker.summary()))

    records += tracker.take()
    assert [[record.timestep // num_envs - 1, record.env] for record in records] == np.argwhere(done).tolist()
    begins = np.zeros(num_envs, dtype=int)
    for record in records:
        t, slot = record.timestep // num_envs - 1, record.env
        episode = slice(begins[slot], t + 1)
        begins[slot] = t + 1
        expected = brute_record(x[episode, slot], rewards[episode, slot], bool(truncated[t, slot]), horizon)
        actual = vars(record)
        for key, value in expected.items():
            if isinstance(value, float | dict):
                assert actual[key] == pytest.approx(value, abs=1e-9), key
            else:
                assert actual[key] == value, key
    begin = 0
    for end, summary in summaries:
        chunk, paid = x[begin:end].reshape(-1, 3), rewards[begin:end].reshape(-1, 6)
        share = paid.mean(axis=0)
        margins = VIABILITY.margins(chunk)
        assert summary.steps == len(chunk)
        assert summary.violations == (margins.min(axis=1) < 0).sum()
        assert summary.min_margin == margins.min()
        assert summary.satisfaction == pytest.approx(
            {"a": np.mean((margins[:, [0, 2]] >= 0).all(axis=1)), "b": np.mean((margins[:, [1, 2]] >= 0).all(axis=1))}
        )
        assert summary.reward_terms == pytest.approx({"task": share[1], "homeo": share[2]})
        assert summary.bonuses == pytest.approx({"rnd": share[3], "surprise": share[4]})
        assert summary.intervention_rate == pytest.approx(np.mean(paid[:, 5] > 0.5))
        begin = end


def test_episodes_that_began_before_the_tracker_are_left_out() -> None:
    tracker = EpisodeTracker(VIABILITY, 2, near=NEAR, core=CORE, horizon=3, midway=True)
    inside, ones, nobody = np.full((2, 3), 0.5), np.ones(2), np.zeros(2, dtype=bool)
    first, second = np.array([True, False]), np.array([False, True])
    assert tracker.step(inside, ones, {}, first, nobody) == []
    assert tracker.step(inside, ones, {}, nobody, nobody) == []
    assert [record.length for record in tracker.step(inside, ones, {}, first, nobody)] == [2]
    assert tracker.step(inside, ones, {}, second, nobody) == []
    assert [record.task_return for record in tracker.step(inside, ones, {}, second, second)] == [1.0]


def record(length: int = 3, violated_at: int | None = None, **changes: Any) -> EpisodeRecord:
    violated = None if violated_at is None else "a >= 0"
    values: dict[str, Any] = {
        "length": length, "terminated": False, "truncated": True, "violated": violated, "violated_at": violated_at,
        "violations": 0, "min_margin": 0.1, "satisfaction": {"a >= 0": 1.0}, "near_steps": 2, "recovered_steps": 1,
        "task_return": 1.5, "shaped_return": 2.5, "reward_terms": {"task": 1.5, "homeo": 1.0}, "env": 1, "timestep": 99,
    }  # fmt: skip
    return EpisodeRecord(**{**values, **changes})


def test_duration_ends_at_the_violation() -> None:
    assert (record(9).duration, record(9).survived) == (9, True)
    assert (record(9, 4).duration, record(9, 4).survived) == (4, False)
    curve = survival_curve([record(9), record(9, 4), record(3), record(5, 5)])
    np.testing.assert_allclose(curve.times, [4, 5])
    np.testing.assert_allclose(curve.survival, [2 / 3, 1 / 3])


@given(hnp.arrays(np.float64, 3, elements=st.floats(allow_nan=False)))
def test_json_round_trip(values: np.ndarray) -> None:
    a, b, c = values.tolist()
    original = record(min_margin=a, task_return=b, reward_terms={"x": c}, bonuses={"rnd": c})
    assert EpisodeRecord.from_json(original.to_json()) == original
    assert "\n" not in original.to_json()
    assert EpisodeRecord.from_json(json.dumps({**json.loads(original.to_json()), "added_later": 1})) == original


def test_lines_of_earlier_versions_are_read() -> None:
    values = vars(record())
    old = {key: value for key, value in values.items() if key not in ("bonuses", "interventions", "stage")}
    assert EpisodeRecord.from_json(json.dumps(old)) == record()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    lines = [record(length).to_json() for length in (1, 2, 3)]
    whole = write(tmp_path / "persist.jsonl", "".join(line + "\n" for line in lines))
    assert [episode.length for episode in read_episodes(whole)] == [1, 2, 3]
    torn = write(tmp_path / "torn.jsonl", "\n".join(lines)[:-20])
    with pytest.warns(UserWarning, match=r"torn\.jsonl: the last line is torn and was left out"):
        assert [episode.length for episode in read_episodes(torn)] == [1, 2]
    assert read_episodes(write(tmp_path / "empty.jsonl", "")) == []


@pytest.mark.parametrize("bad", ["r,l,t", "{}", "[1, 2]", "3"])
def test_any_other_damaged_line_is_named(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path / "persist.jsonl", f"{record().to_json()}\n{bad}\n{record().to_json()}\n")
    with pytest.raises(ValueError, match=r"persist\.jsonl, line 2: "):
        read_episodes(path)


@pytest.mark.parametrize(
    ("terms", "share"),
    [
        ({"task": 1.0, "homeo": -2.0, "intrinsic": 1.0}, 0.25),
        ({"task": 0.0, "intrinsic": -3.0}, 1.0),
        ({"task": 1.0, "intrinsic": 0.0}, 0.0),
        ({"task": 0.0, "intrinsic": 0.0}, None),
        ({"task": 1.0}, None),
    ],
)
def test_share_of_the_intrinsic_reward(terms: dict[str, float], share: float | None) -> None:
    assert intrinsic_share(terms) == share
