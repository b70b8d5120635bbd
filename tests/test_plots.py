"""The plots show the data: what is on the axes is compared with figures worked out by hand, or published."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import Container, ErrorbarContainer
from matplotlib.lines import Line2D
from PIL import Image

from persist_sb3 import plots
from persist_sb3.evaluation import Episode
from persist_sb3.metrics import EpisodeRecord
from persist_sb3.viability import ViabilitySet

# Remission of 21 patients under 6-MP, in weeks (Freireich et al., 1963), and the survival function as published:
# Kalbfleisch & Prentice, The Statistical Analysis of Failure Time Data, or Cox & Oakes, Analysis of Survival Data.
RELAPSE = [6, 6, 6, 7, 10, 13, 16, 22, 23]
CENSORED = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
PUBLISHED = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
VIABILITY = ViabilitySet(
    ["fuel >= 0.2", "heat in [0.3, 0.7]"], ["fuel", "heat"], mu=[0.7, 0.5], low=[0.0, 0.0], high=[1.0, 1.0]
)


def record(length: int, violated: str | None = None, timestep: int = 0, **terms: float) -> EpisodeRecord:
    return EpisodeRecord(
        length=length,
        terminated=violated is not None,
        truncated=violated is None,
        violated=violated,
        violated_at=None if violated is None else length,
        violations=int(violated is not None),
        min_margin=0.0,
        satisfaction={},
        near_steps=0,
        recovered_steps=0,
        task_return=terms.get("task", 0.0),
        shaped_return=0.0,
        reward_terms=terms,
        env=0,
        timestep=timestep,
    )


def remission() -> list[EpisodeRecord]:
    return [record(week, "fuel >= 0.2") for week in RELAPSE] + [record(week) for week in CENSORED]


def line(axes: Axes, label: str) -> Line2D:
    (found,) = (each for each in axes.get_lines() if each.get_label() == label)
    return found


def xs(drawn: Line2D) -> list[float]:
    return np.asarray(drawn.get_xdata(), dtype=float).tolist()


def ys(drawn: Line2D) -> list[float]:
    return np.asarray(drawn.get_ydata(), dtype=float).tolist()


def steps(curve: Line2D) -> dict[float, float]:
    """What a step curve that holds its value to the right is at each of its times."""
    assert curve.get_drawstyle() == "steps-post"
    return dict(zip(xs(curve), ys(curve), strict=True))


def centre(bars: Container) -> Line2D:
    assert isinstance(bars, ErrorbarContainer)
    assert bars.lines[0] is not None
    return bars.lines[0]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_survival_is_the_published_curve() -> None:
    (axes,) = plots.survival({"6-MP": remission()}).axes
    curve = steps(line(axes, "6-MP"))
    assert curve.pop(0) == 1.0
    assert curve.pop(35) == pytest.approx(PUBLISHED[23], abs=5e-4)
    assert curve == pytest.approx(PUBLISHED, abs=5e-4)
    assert "6-MP  45%" in texts(axes)


def test_survival_band_is_greenwoods() -> None:
    (axes,) = plots.survival({"6-MP": remission()}).axes
    (band,) = (each for each in axes.collections if isinstance(each, PolyCollection))
    at_10 = {round(y, 6) for x, y in np.asarray(band.get_paths()[0].vertices).tolist() if x == 10}
    # Until week 10: 3 of 21 relapse, 1 of 17, 1 of 15.
    share = 18 / 21 * 16 / 17 * 14 / 15
    error = math.sqrt(3 / (21 * 18) + 1 / (17 * 16) + 1 / (15 * 14))
    factor = math.exp(1.959964 * error / -math.log(share))
    assert round(share**factor, 6) in at_10
    assert round(share ** (1 / factor), 6) in at_10


def test_survival_marks_the_censored_and_counts_those_at_risk() -> None:
    (axes,) = plots.survival({"6-MP": remission(), "nobody": [record(5, "fuel >= 0.2")] * 3}).axes
    marks = [each for each in axes.get_lines() if each.get_marker() == "|"]
    assert [xs(mark) for mark in marks] == [sorted(set(CENSORED)), []]
    counts = {tick: sum(time >= tick for time in RELAPSE + CENSORED) for tick in axes.get_xticks() if 0 <= tick <= 35}
    shown = [text for text in axes.texts if text.get_text().isdigit()]
    assert [int(text.get_text()) for text in shown[: len(counts)]] == list(counts.values())
    assert "nobody  0%" in texts(axes)


def test_survival_without_a_death() -> None:
    (axes,) = plots.survival({"safe": [record(7)] * 4}).axes
    assert steps(line(axes, "safe")) == {0.0: 1.0, 7.0: 1.0}


def episode(trace: Sequence[Sequence[float]]) -> Episode:
    internal = np.array(trace)
    violated = VIABILITY.violated(internal)
    at = int(np.argmax(violated >= 0)) + 1 if (violated >= 0).any() else None
    name = None if at is None else VIABILITY.names[violated[at - 1]]
    made = record(len(internal), name)
    made.violated_at = at
    return Episode(made, internal, np.zeros(len(internal)), {})


def test_internal_shows_the_traces_their_limits_and_deaths() -> None:
    alive, dead = episode([[0.7, 0.5], [0.6, 0.55]]), episode([[0.5, 0.6], [0.4, 0.65], [0.3, 0.75]])
    figure = plots.internal({"one": [alive, dead]}, {"one": VIABILITY})
    fuel, heat = figure.axes
    for column, axes in enumerate((fuel, heat)):
        solid = [each for each in axes.get_lines() if each.get_linestyle() == "-"]
        assert [ys(each) for each in solid] == [each.internal[:, column].tolist() for each in (alive, dead)]
        (setpoint,) = (each for each in axes.get_lines() if each.get_linestyle() == "--")
        assert VIABILITY.mu is not None
        assert set(ys(setpoint)) == {VIABILITY.mu[column]}
        low, high = VIABILITY.box()
        (band,) = axes.patches
        assert band.get_extents().transformed(axes.transData.inverted()).y0 == pytest.approx(low[column])
        assert band.get_extents().transformed(axes.transData.inverted()).y1 == pytest.approx(high[column])
        assert axes.get_ylabel() == VIABILITY.dims[column]
    crosses = [[(xs(e), ys(e)) for e in axes.get_lines() if e.get_marker() == "x"] for axes in (fuel, heat)]
    assert crosses == [[], [([3.0], [0.75])]]
    assert heat.get_title("right") == "heat in [0.3, 0.7]"


def test_internal_has_a_column_a_run_and_draws_so_many() -> None:
    episodes = [episode([[0.7, 0.5]])] * 5
    figure = plots.internal({"a": episodes, "b": episodes}, {"a": VIABILITY, "b": VIABILITY}, most=2)
    assert len(figure.axes) == 4
    assert figure.axes[1].get_title("left") == "b: 2 of 5 episodes"


def test_internal_of_variables_without_limits() -> None:
    loose = ViabilitySet(["fuel + heat >= 0.2"], ["fuel", "heat"])
    made = Episode(record(2), np.array([[3.0, -2.0], [3.0, -2.0]]), np.zeros(2), {})
    fuel, _ = plots.internal({"one": [made]}, {"one": loose}).axes
    low, high = fuel.get_ylim()
    assert low < 3.0 < high


def test_training_rates_are_those_of_the_window() -> None:
    # For 3000 steps every second episode of 10 steps ends in a violation, then none does.
    episodes = [
        record(10, "fuel >= 0.2" if end <= 3000 and end % 20 == 0 else None, timestep=end)
        for end in range(10, 6001, 10)
    ]
    rate, share = plots.training({"run": episodes}).axes
    rates, shares = line(rate, "run"), line(share, "run")
    for x, shown_rate, shown_share in zip(xs(rates), ys(rates), ys(shares), strict=True):
        inside = [each for each in episodes if x - 200 < each.timestep <= x + 200]
        died = sum(not each.survived for each in inside)
        assert shown_rate == pytest.approx(1000 * died / (10 * len(inside)))
        assert shown_share == pytest.approx(1 - died / len(inside))
    assert ys(rates)[50] == pytest.approx(50, rel=0.06)
    assert share.get_ylim() == (0, 1)


def test_training_with_a_single_episode() -> None:
    rate, _ = plots.training({"run": [record(40, "fuel >= 0.2", timestep=320)]}).axes
    assert set(ys(line(rate, "run"))) == {25.0}


def test_rewards_while_training_and_in_evaluation() -> None:
    trained = {"ours": [record(20, timestep=20 * i, task=4.0, homeo=-1.0) for i in range(1, 50)]}
    evaluated = {
        "ours": [record(10, task=1.0, homeo=-2.0), record(10, task=5.0, homeo=-4.0)],
        "bare": [record(10, task=2.0), record(10, task=2.0)],
    }
    figure = plots.rewards(trained, evaluated)
    task_training, task_evaluation, homeo_training, homeo_evaluation = figure.axes
    assert set(ys(task_training.get_lines()[0])) == {0.2}
    assert set(ys(homeo_training.get_lines()[0])) == {-0.05}
    ours, bare = (centre(container) for container in task_evaluation.containers)
    assert (xs(ours), ys(ours), xs(bare), ys(bare)) == ([0.0], [3.0], [1.0], [2.0])
    (bars,) = homeo_evaluation.containers
    assert isinstance(bars, ErrorbarContainer)
    # The standard error of -2 and -4 is 1.
    assert [ys(cap)[0] for cap in bars.lines[1]] == pytest.approx([-3 - 1.959964, -3 + 1.959964])
    assert texts(task_evaluation) == ["ours", "bare"]
    assert texts(homeo_evaluation) == ["ours"]


@pytest.mark.parametrize("part", ["training", "evaluation"])
def test_rewards_of_one_part_only(part: str) -> None:
    runs = {"ours": [record(20, timestep=20, task=4.0)]}
    figure = plots.rewards(runs, {}) if part == "training" else plots.rewards({}, runs)
    (axes,) = figure.axes
    assert f"task: {part}" == axes.get_title("left")


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.floats(0.01, 0.12),
)
def test_labels_are_apart_and_stay_in_order(heights: list[float], gap: float) -> None:
    places = plots.spread(heights, gap, 0.0, 1.0)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(np.array(places)[order]) >= gap * (1 - 1e-6)).all()
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9


@given(st.lists(st.integers(0, 10), min_size=1, unique=True))
def test_labels_that_are_apart_stay_where_they_are(heights: list[int]) -> None:
    assert plots.spread(heights, 0.9, 0.0, 10.0) == pytest.approx(heights)


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    path = plots.save(plots.survival({"6-MP": remission()}), tmp_path / "survival.png")
    assert dict(matplotlib.rcParams) == before
    assert [each.name for each in tmp_path.iterdir()] == ["survival.png"]
    with Image.open(path) as image:
        assert image.size[0] == pytest.approx(6.4 * 160, abs=1)


def test_intrinsic_reward_against_time_alive_by_hand() -> None:
    dead = [record(10, "fuel >= 0.2", intrinsic=paid) for paid in (1.0, 3.0)]
    alive = [record(40, intrinsic=paid) for paid in (8.0, 12.0, 16.0)]
    figure = plots.intrinsic({"a": [*alive, *dead]}, groups=2)
    drawn = figure.axes[0].containers[0][0]
    # Per step: 0.1 and 0.3 of those that lasted 10 steps, 0.2, 0.3 and 0.4 of those that lasted 40.
    assert xs(drawn) == [10.0, 40.0]
    assert ys(drawn) == pytest.approx([0.2, 0.3])


def test_each_bonus_has_a_panel_of_the_runs_that_have_it() -> None:
    both = record(10, timestep=10, intrinsic=3.0)
    both.bonuses = {"rnd": 5.0, "surprise": -2.0}
    figure = plots.intrinsic({"one": [record(10, intrinsic=1.0)], "both": [both]})
    assert [axes.get_title("left") for axes in figure.axes] == [
        "intrinsic reward: training",
        "rnd: training",
        "surprise: training",
    ]
    drawn = [[ys(centre(bars))[0] for bars in axes.containers] for axes in figure.axes]
    assert drawn == [[0.1, 0.3], [0.5], [-0.2]]
    titles = [axes.get_title("left") for axes in plots.rewards({"both": [both]}, {}).axes]
    assert titles == [f"{name}: training" for name in ("task", "intrinsic", "bonus rnd", "bonus surprise")]


def test_pixels_of_a_figure() -> None:
    image = plots.pixels(plots.intrinsic({"a": [record(10, intrinsic=1.0)]}))
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    # White paper, and something on it.
    assert (image[0, 0] == 255).all() and image.min() < 100


def test_episodes_of_one_length_are_one_group() -> None:
    figure = plots.intrinsic({"a": [record(50, intrinsic=float(paid)) for paid in range(7)]})
    drawn = figure.axes[0].containers[0][0]
    assert xs(drawn) == [50.0] and ys(drawn) == pytest.approx([3.0 / 50.0])
