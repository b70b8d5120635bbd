"""The figures of a report, against published numbers and closed forms."""

import json
import math

import numpy as np
import pytest

from persist_sb3.metrics import EpisodeRecord, kaplan_meier
from persist_sb3.summary import (
    common_horizon,
    evaluation_figures,
    intrinsic_by_time_alive,
    intrinsic_correlation,
    mean_interval,
    training_figures,
    wilson_interval,
    without_nan,
)


def record(length: int, violated: str | None = None, timestep: int = 0, **other: object) -> EpisodeRecord:
    values: dict[str, object] = {
        "length": length,
        "terminated": violated is not None,
        "truncated": violated is None,
        "violated": violated,
        "violated_at": None if violated is None else length,
        "violations": int(violated is not None),
        "min_margin": 0.0,
        "satisfaction": {
            "a >= 0": 1.0 - (violated == "a >= 0") / length,
            "b >= 0": 1.0 - (violated == "b >= 0") / length,
        },
        "near_steps": 0,
        "recovered_steps": 0,
        "task_return": 0.0,
        "shaped_return": 0.0,
        "reward_terms": {},
        "env": 0,
        "timestep": timestep,
    }
    return EpisodeRecord(**{**values, **other})  # type: ignore[arg-type]


# Table I of Newcombe, Statistics in Medicine 17 (1998), method 3.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_published(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_interval_of_a_mean() -> None:
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx(
        {"mean": 2.0, "low": 2.0 - 1.959964 / math.sqrt(3), "high": 2.0 + 1.959964 / math.sqrt(3)}
    )
    assert math.isnan(mean_interval([4.0])["high"])


def test_interval_of_a_mean_covers_it() -> None:
    samples = np.random.default_rng(0).normal(3.0, 2.0, (2000, 50))
    covered = [i["low"] <= 3.0 <= i["high"] for i in map(mean_interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_means_compare_up_to_where_all_curves_are_known() -> None:
    ends_alive, dies_out, longer = (
        kaplan_meier([4, 10], [True, False]),
        kaplan_meier([3, 30], [True, True]),
        kaplan_meier([20], [False]),
    )
    assert common_horizon([ends_alive, dies_out, longer]) == 10
    assert common_horizon([dies_out, longer]) == 20
    assert common_horizon([dies_out, kaplan_meier([5], [True])]) == 30


def test_figures_of_an_evaluation() -> None:
    figures = evaluation_figures(
        [
            record(10, near_steps=4, recovered_steps=1, task_return=2.0, reward_terms={"task": 2.0}),
            record(4, "a >= 0", near_steps=2, recovered_steps=2, task_return=4.0, reward_terms={"task": 4.0}),
            record(6, "b >= 0", task_return=0.0, reward_terms={"task": 0.0}),
            record(8, "b >= 0", task_return=2.0, reward_terms={"task": 2.0}),
        ],
        horizon=10.0,
    )
    assert (figures["episodes"], figures["steps"]) == (4, 28)
    assert (figures["survival"]["survived"], figures["survival"]["share"]) == (1, 0.25)
    # Without censoring before the end, the median and the mean are those of the sample.
    assert figures["time_to_violation"] == {"median": 6.0, "restricted_mean": 7.0, "horizon": 10.0}
    assert figures["violations_per_1k_steps"] == pytest.approx(3000 / 28)
    assert figures["satisfaction"] == pytest.approx({"a >= 0": 27 / 28, "b >= 0": 26 / 28})
    assert figures["deaths"] == {"a >= 0": 1, "b >= 0": 2}
    assert figures["recovery_rate"] == 0.5
    assert figures["task_return"]["mean"] == figures["reward_terms"]["task"]["mean"] == 2.0


def test_figures_of_training() -> None:
    # One death every 10 steps for 900 steps, then one in 100.
    early = [record(10, "a >= 0", timestep=10 * i) for i in range(1, 91)]
    figures = training_figures([*early, record(50, timestep=950), record(50, "b >= 0", timestep=1000)])
    assert figures == {
        "timesteps": 1000,
        "episodes": 92,
        "violations": 91,
        "violations_per_1k_steps": 91.0,
        "violations_per_1k_steps_in_last_tenth": 10.0,
        "deaths": {"a >= 0": 90, "b >= 0": 1},
        "intervention_rate": None,
        "intrinsic_share": None,
        "intrinsic_correlation": None,
        "intrinsic_by_time_alive": None,
        "bonuses": {},
    }


def test_share_of_the_intrinsic_reward_in_training() -> None:
    terms = ({"task": 5.0, "intrinsic": 1.0}, {"task": -2.0, "intrinsic": 2.0})
    episodes = [record(10, timestep=10, reward_terms=each) for each in terms]
    assert training_figures(episodes)["intrinsic_share"] == pytest.approx(3.0 / 6.0)


def test_the_intrinsic_reward_against_the_time_alive() -> None:
    def paid(length: int, total: float, violated: str | None = None) -> EpisodeRecord:
        return record(length, violated, timestep=length, reward_terms={"intrinsic": total})

    # Per step 3, 2, 2 and 1: the longer they live the less they are paid, with one tie on each side.
    episodes = [paid(10, 30.0, "a >= 0"), paid(20, 40.0, "a >= 0"), paid(40, 80.0), paid(40, 40.0)]
    ranks = np.array([[1.0, 2.0, 3.5, 3.5], [4.0, 2.5, 2.5, 1.0]])
    assert intrinsic_correlation(episodes) == pytest.approx(float(np.corrcoef(ranks)[0, 1]))
    assert intrinsic_correlation(episodes[2:]) is None and intrinsic_correlation([]) is None
    assert intrinsic_correlation([*episodes, record(10)]) is None
    points = intrinsic_by_time_alive(episodes, groups=2)
    assert [(point["time_alive"], point["mean"]) for point in points] == [(15.0, 2.5), (40.0, 1.5)]
    curve = training_figures([*episodes, record(10)])["intrinsic_by_time_alive"]
    assert [point["time_alive"] for point in curve] == [10.0, 20.0, 40.0]


def test_each_bonus_where_there_are_several() -> None:
    def paid(length: int, timestep: int, **bonuses: float) -> EpisodeRecord:
        terms = {"task": -2.0, "intrinsic": sum(bonuses.values())}
        return record(length, timestep=timestep, reward_terms=terms, bonuses=bonuses)

    # One pays those who live long, the other those who die young; together they nearly cancel out.
    episodes = [paid(10, 10, rnd=10.0, surprise=-8.0), paid(20, 30, rnd=40.0, surprise=-40.0)]
    figures = training_figures(episodes)
    assert figures["intrinsic_share"] == pytest.approx(2.0 / 6.0)
    rnd, surprise = (figures["bonuses"][name] for name in ("rnd", "surprise"))
    assert (rnd["mean"], surprise["mean"]) == pytest.approx((50.0 / 30.0, -48.0 / 30.0))
    assert (rnd["share"], surprise["share"]) == pytest.approx((50.0 / 102.0, 48.0 / 102.0))
    assert (rnd["correlation"], surprise["correlation"]) == pytest.approx((1.0, -1.0))
    assert [point["mean"] for point in rnd["by_time_alive"]] == [1.0, 2.0]
    assert [point["mean"] for point in surprise["by_time_alive"]] == [-0.8, -2.0]
    evaluated = evaluation_figures(episodes, 20.0)["bonuses"]
    assert {name: interval["mean"] for name, interval in evaluated.items()} == {"rnd": 25.0, "surprise": -24.0}
    # A run that went on with more layers: what not all of its episodes tell apart is left out.
    assert (
        training_figures([record(10, timestep=5, reward_terms={"task": 1.0, "intrinsic": 1.0}), *episodes])["bonuses"]
        == {}
    )


def test_a_constraint_that_killed_nobody() -> None:
    assert training_figures([record(10, "a >= 0", timestep=10)])["deaths"] == {"a >= 0": 1, "b >= 0": 0}


def test_a_violation_of_an_unknown_constraint() -> None:
    unknown = record(10, timestep=10, violated_at=10)
    assert training_figures([unknown])["violations"] == 1
    assert training_figures([unknown])["deaths"] is None


def test_what_json_does_not_have() -> None:
    figures = {"a": [math.nan, 1.0], "b": {"c": math.inf, "d": "x", "e": None, "f": True}}
    clean = {"a": [None, 1.0], "b": {"c": None, "d": "x", "e": None, "f": True}}
    assert json.loads(json.dumps(without_nan(figures), allow_nan=False)) == clean
