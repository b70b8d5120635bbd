"""Figures of a report. Each function takes data and returns a ``matplotlib.figure.Figure``; pyplot is not involved."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from persist_sb3.evaluation import Episode
from persist_sb3.metrics import EpisodeRecord, survival_curve
from persist_sb3.shield.calibration import Outcomes
from persist_sb3.summary import bonus_names, intrinsic_by_time_alive, mean_interval, wilson_interval
from persist_sb3.viability import ViabilitySet

Floats = NDArray[np.float64]

#: Told apart with any colour vision (Okabe & Ito, 2008), the darker ones first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
VIABLE, ON_VIABLE = "#DCEFE3", "#3C7A57"
DEATH = "#B00020"
INK, FAINT = "#222222", "#8A8A8A"
SMALL = 8.5

STYLE: Any = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "butt",
    "savefig.dpi": 160,
}
styled = matplotlib.rc_context(STYLE)


def colours(labels: Sequence[str]) -> dict[str, str]:
    """
    :param labels: of runs
    :return: one colour a run
    """
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """
    :param figure: the figure
    :return: it, drawn, ``(height, width, 3)``
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """
    Write a figure as PNG; the file is complete or untouched.

    :param figure: the figure
    :param path: where to
    :return: the same
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=STYLE["savefig.dpi"])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@styled
def survival(runs: Mapping[str, Sequence[EpisodeRecord]]) -> Figure:
    """
    Kaplan-Meier curves of the time to the first violation, with pointwise 95 % bands (Greenwood's variance on the
    log(-log) scale), a tick where an episode was censored, and the number of episodes at risk below.

    :param runs: evaluation episodes by label
    :return: the figure
    """
    figure = _figure(6.4, 3.7 + 0.2 * len(runs))
    axes = figure.add_subplot()
    curves = {label: survival_curve(episodes) for label, episodes in runs.items()}
    end = max(curve.last for curve in curves.values())
    colour_of = colours(list(runs))
    for label, colour in colour_of.items():
        curve, episodes = curves[label], runs[label]
        times = np.concatenate([[0.0], curve.times, [curve.last]])
        share = np.concatenate([[1.0], curve.survival, curve.at([curve.last])])
        low, high = (np.concatenate([[1.0], bound, bound[-1:]]) for bound in curve.interval())
        if len(curve.times):
            axes.fill_between(times, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
        axes.step(times, share, where="post", color=colour, label=label)
        censored = np.unique([episode.duration for episode in episodes if episode.survived])
        axes.plot(censored, curve.at(censored), linestyle="none", marker="|", markersize=9, color=colour, clip_on=False)
    _percent(axes)
    axes.set_xlim(0, end)
    axes.set_ylabel("episodes without a violation")
    axes.set_xlabel("time alive (steps)")
    ends = {label: float(curve.at(end)) for label, curve in curves.items()}
    _direct_labels(axes, {label: (share, f"{label}  {share:.0%}") for label, share in ends.items()}, colour_of)
    _at_risk(axes, runs)
    return figure


def _at_risk(axes: Axes, runs: Mapping[str, Sequence[EpisodeRecord]]) -> None:
    """
    Beneath the axis, how many episodes are neither dead nor censored before each tick.

    :param axes: with a time axis
    :param runs: episodes by label
    """
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    axes.set_xticks(ticks)
    axes.xaxis.labelpad = 8 + 12 * len(runs)
    small: dict[str, Any] = {"textcoords": "offset points", "va": "top", "fontsize": SMALL}
    axes.annotate("at risk", (0, 0), (-18, -20), xycoords="axes fraction", ha="right", color=FAINT, **small)
    for row, (label, colour) in enumerate(colours(list(runs)).items()):
        durations = np.array([episode.duration for episode in runs[label]])
        for tick in ticks:
            text, place = str((durations >= tick).sum()), (0, -20 - 12 * row)
            axes.annotate(
                text, (tick, 0), place, xycoords=("data", "axes fraction"), ha="center", color=colour, **small
            )


@styled
def internal(runs: Mapping[str, Sequence[Episode]], viability: Mapping[str, ViabilitySet], most: int = 8) -> Figure:
    """
    The internal variables over time: a row a variable, a column a run. The shaded band is viable (as far as limits of
    single variables say), the dashed line is the setpoint, and a cross is a violation of a constraint on the variable.

    :param runs: evaluation episodes by label
    :param viability: the constraints of each run; all are on the same variables
    :param most: how many episodes are drawn, the first ones
    :return: the figure
    """
    dims = next(iter(viability.values())).dims
    figure = _figure(1.4 + 4.0 * len(runs), 0.9 + 1.5 * len(dims))
    grid = figure.subplots(len(dims), len(runs), sharex=True, sharey="row", squeeze=False)
    for row, name in enumerate(dims):
        for axes, (label, colour) in zip(grid[row], colours(list(runs)).items(), strict=True):
            _traces(axes, runs[label][:most], viability[label], row, colour)
        grid[row, 0].set_ylim(_reach(row, runs, viability, most))
        grid[row, 0].set_ylabel(name)
    for axes, label in zip(grid[0], runs, strict=True):
        axes.set_title(f"{label}: {min(most, len(runs[label]))} of {len(runs[label])} episodes")
    for axes in grid[-1]:
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
    figure.supxlabel("shaded: viable    dashed: setpoint    cross: violation", color=FAINT, fontsize=SMALL)
    return figure


def _traces(axes: Axes, episodes: Sequence[Episode], viability: ViabilitySet, column: int, colour: str) -> None:
    """
    :param axes: where to draw
    :param episodes: what to draw
    :param viability: the constraints
    :param column: of the variable
    :param colour: of the run
    """
    name = viability.dims[column]
    low, high = (np.clip(bound[column], -1e9, 1e9) for bound in viability.box())
    axes.axhspan(low, high, color=VIABLE, linewidth=0, zorder=0)
    if viability.mu is not None:
        axes.axhline(viability.mu[column], color=FAINT, linestyle=(0, (4, 3)), linewidth=1.0)
    about = [constraint.text for constraint in viability.constraints if name in constraint.names]
    axes.set_title(", ".join(about), loc="right", color=ON_VIABLE, fontsize=SMALL, fontweight="normal")
    for episode in episodes:
        trace, at = episode.internal[:, column], episode.record.violated_at
        axes.plot(np.arange(1, len(trace) + 1), trace, color=colour, alpha=0.6, linewidth=1.0)
        if at is not None and episode.record.violated in about:
            axes.plot(at, trace[at - 1], "x", color=DEATH, markersize=6, markeredgewidth=1.8, zorder=3, clip_on=False)


def _reach(
    column: int, runs: Mapping[str, Sequence[Episode]], viability: Mapping[str, ViabilitySet], most: int
) -> tuple[float, float]:
    """
    :param column: of a variable
    :param runs: episodes by label
    :param viability: the constraints of each run
    :param most: how many episodes are drawn
    :return: limits of an axis that shows what is drawn, and the variable's limits
    """
    values = [episode.internal[:, column] for episodes in runs.values() for episode in episodes[:most]]
    values += [bound[[column]] for limits in viability.values() for bound in limits.box()]
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    margin = 0.06 * (finite.max() - finite.min()) or 1.0
    return float(finite.min() - margin), float(finite.max() + margin)


@styled
def training(runs: Mapping[str, Sequence[EpisodeRecord]]) -> Figure:
    """
    Violations (one an episode) and survival while training, in a moving window of a fifteenth of the longest run.

    :param runs: training episodes by label, each at least one
    :return: the figure
    """
    figure = _figure(6.4, 5.0)
    rate, share = figure.subplots(2, 1, sharex=True)
    for label, colour in colours(list(runs)).items():
        window = _Window(runs[label], _width(runs))
        survived = np.array([episode.survived for episode in runs[label]])
        rate.plot(window.at, 1000.0 * window.per_step(~survived), color=colour, label=label)
        share.plot(window.at, window.per_episode(survived), color=colour, label=label)
    rate.set_title("violations per 1000 steps")
    rate.set_ylim(bottom=0)
    share.set_title("episodes without a violation")
    _percent(share)
    _training_axis(share, runs)
    for axes in (rate, share):
        ends = {str(line.get_label()): float(np.asarray(line.get_ydata())[-1]) for line in axes.get_lines()}
        _direct_labels(axes, {label: (height, label) for label, height in ends.items()}, colours(list(runs)))
    return figure


@styled
def rewards(trained: Mapping[str, Sequence[EpisodeRecord]], evaluated: Mapping[str, Sequence[EpisodeRecord]]) -> Figure:
    """
    The reward terms, and the bonuses where there are several: a row each. On the left their mean per step while
    training, in a moving window; on the right their sum in an evaluation episode, with the 95 % interval of its mean.

    :param trained: training episodes by label
    :param evaluated: evaluation episodes by label
    :return: the figure
    """
    labels = list(dict.fromkeys([*trained, *evaluated]))
    first = [episodes[0] for runs in (trained, evaluated) for episodes in runs.values()]
    terms = list(dict.fromkeys(name for episode in first for name in _terms(episode)))
    columns = [draw for draw, runs in ((_term_over_training, trained), (_term_in_evaluation, evaluated)) if runs]
    figure = _figure(8.0 if len(columns) == 2 else 6.0, 0.9 + 1.6 * len(terms))
    ratios = [3 if draw is _term_over_training else 1 for draw in columns]
    grid = figure.subplots(len(terms), len(columns), squeeze=False, sharex="col", width_ratios=ratios)
    for row, term in zip(grid, terms, strict=True):
        for axes, draw in zip(row, columns, strict=True):
            ends = draw(axes, term, labels, trained if draw is _term_over_training else evaluated)
        _direct_labels(axes, {label: (height, label) for label, height in ends.items()}, colours(labels))
    return figure


@styled
def intrinsic(runs: Mapping[str, Sequence[EpisodeRecord]], groups: int = 10) -> Figure:
    """
    The intrinsic reward per step against the time alive: whether those who live long are those who are paid for it. The
    training episodes are put in groups by the time that they lasted without a violation; drawn is each group's mean,
    with the 95 % interval of that. Below, the same of each bonus of the runs that tell several apart.

    :param runs: training episodes by label, each with the reward term ``intrinsic``
    :param groups: most groups of a run, of about equally many episodes
    :return: the figure
    """
    bonuses = dict.fromkeys(name for episodes in runs.values() for name in bonus_names(episodes))
    figure = _figure(6.4, 1.0 + 2.7 * (1 + len(bonuses)))
    column = figure.subplots(1 + len(bonuses), 1, squeeze=False, sharex=True)[:, 0]
    for axes, bonus in zip(column, (None, *bonuses), strict=True):
        ends = {}
        for label, colour in colours(list(runs)).items():
            if bonus is not None and bonus not in bonus_names(runs[label]):
                continue
            points = intrinsic_by_time_alive(runs[label], bonus, groups)
            at, mean = [point["time_alive"] for point in points], np.array([point["mean"] for point in points])
            # A group of one has no interval.
            error = np.nan_to_num([[point["mean"] - point["low"], point["high"] - point["mean"]] for point in points])
            style: dict[str, Any] = {"fmt": "o-", "color": colour, "capsize": 3, "markersize": 4, "label": label}
            axes.errorbar(at, mean, error.T, **style)
            ends[label] = (float(mean[-1]), label)
        axes.set_title(f"{'intrinsic reward' if bonus is None else bonus}: training")
        axes.set_ylabel("per step")
        _direct_labels(axes, ends, colours(list(runs)))
    column[-1].set_xlabel("time alive (steps)")
    column[-1].set_xlim(left=0)
    return figure


@styled
def calibration(outcomes: Outcomes) -> Figure:
    """
    How often decisions near the boundary stayed safe, by the critic's value, with Wilson's 95 % intervals, and what
    the shield says of such a value; a vertical line at the threshold that is measured to be enough, which is the
    shield's own with ``threshold="calibrated"`` alone. Below, how many decisions there were.

    :param outcomes: what became of them
    :return: the figure
    """
    figure = _figure(6.4, 4.6)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    value, share = np.array(outcomes.value), np.array(outcomes.realised)
    bounds = np.array([wilson_interval(*each) for each in zip(outcomes.kept, outcomes.made, strict=True)])
    # Rounding may put a share of 1 above its upper bound.
    error = np.abs(np.stack([share - bounds[:, 0], bounds[:, 1] - share]))
    axes.errorbar(value, share, error, fmt="o", color=PALETTE[0], capsize=3, markersize=4, label="stayed safe")
    declared = np.array(outcomes.declared, dtype=np.float64)
    axes.plot(value, declared, color=PALETTE[1], label="declared")
    axes.axvline(outcomes.threshold, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.0)
    axes.set_title("decisions near the boundary")
    measured = f"calibrated threshold {outcomes.threshold:.2f}"
    axes.set_title(measured, loc="right", color=FAINT, fontsize=SMALL, fontweight="normal")
    _percent(axes)
    axes.legend(loc="lower right", frameon=False)
    counts.bar(value, outcomes.made, width=0.03, color=FAINT)
    counts.set_ylabel("decisions")
    counts.set_xlabel("critic's value of the executed action (scaled margin)")
    return figure


def _term_over_training(
    axes: Axes, term: str, labels: Sequence[str], runs: Mapping[str, Sequence[EpisodeRecord]]
) -> dict[str, float]:
    """
    :param axes: where to draw
    :param term: of the reward
    :param labels: of all runs
    :param runs: training episodes by label
    :return: by label, where its line ends
    """
    ends = {}
    for label, episodes in runs.items():
        if term in _terms(episodes[0]):
            window = _Window(episodes, _width(runs))
            mean = window.per_step([_terms(episode)[term] for episode in episodes])
            axes.plot(window.at, mean, color=colours(labels)[label])
            ends[label] = float(mean[-1])
    axes.set_title(f"{term}: training")
    axes.set_ylabel("per step")
    _training_axis(axes, runs)
    return ends


def _term_in_evaluation(
    axes: Axes, term: str, labels: Sequence[str], runs: Mapping[str, Sequence[EpisodeRecord]]
) -> dict[str, float]:
    """
    :param axes: where to draw
    :param term: of the reward
    :param labels: of all runs
    :param runs: evaluation episodes by label
    :return: by label, where its mean is
    """
    means = {}
    for label, episodes in runs.items():
        if term in _terms(episodes[0]):
            interval = mean_interval([_terms(episode)[term] for episode in episodes])
            means[label] = mean = interval["mean"]
            error = [[mean - interval["low"]], [interval["high"] - mean]]
            style: dict[str, Any] = {"fmt": "o", "color": colours(labels)[label], "capsize": 3, "markersize": 5}
            axes.errorbar(labels.index(label), mean, error, **style)
    axes.set_title(f"{term}: evaluation")
    axes.set_ylabel("per episode")
    axes.set_xlim(-0.8, len(labels) - 0.2)
    axes.set_xticks([])
    axes.margins(y=0.2)
    return means


def _terms(episode: EpisodeRecord) -> dict[str, float]:
    bonuses = {f"bonus {name}": paid for name, paid in episode.bonuses.items()}
    return {"task": episode.task_return, **episode.reward_terms, **bonuses}


class _Window:
    """
    Sums over a window that moves along training.

    :param episodes: at least one, each counted when it ended
    :param width: of the window, in steps
    """

    def __init__(self, episodes: Sequence[EpisodeRecord], width: float) -> None:
        self._ends = np.array([episode.timestep for episode in episodes])
        self._order = np.argsort(self._ends, kind="stable")
        self._lengths = np.array([episode.length for episode in episodes])
        grid = np.linspace(0.0, _end(episodes), 200)
        self._from, self._to = (
            np.searchsorted(self._ends[self._order], grid + side * width / 2, side="right") for side in (-1, 1)
        )
        filled = self._to > self._from
        self.at, self._from, self._to = grid[filled], self._from[filled], self._to[filled]

    def _sums(self, values: Any) -> Floats:
        upto = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64)[self._order])])
        return upto[self._to] - upto[self._from]

    def per_step(self, values: Any) -> Floats:
        """
        :param values: one an episode
        :return: their sum over the number of steps of these episodes, at each place of ``at``
        """
        return self._sums(values) / self._sums(self._lengths)

    def per_episode(self, values: Any) -> Floats:
        """
        :param values: one an episode
        :return: their mean, at each place of ``at``
        """
        return self._sums(values) / (self._to - self._from)


def _end(episodes: Sequence[EpisodeRecord]) -> int:
    return max(episode.timestep for episode in episodes)


def _width(runs: Mapping[str, Sequence[EpisodeRecord]]) -> float:
    return max(_end(episodes) for episodes in runs.values()) / 15


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _percent(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _training_axis(axes: Axes, runs: Mapping[str, Sequence[EpisodeRecord]]) -> None:
    """
    :param axes: over training
    :param runs: training episodes by label
    """
    axes.set_xlim(0, max(_end(episodes) for episodes in runs.values()))
    axes.set_xlabel("training steps")
    axes.xaxis.set_major_formatter(_thousands)
    axes.label_outer()


def _thousands(value: float, _: float) -> str:
    """
    :param value: a number of steps
    :return: it, short
    """
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _direct_labels(axes: Axes, ends: Mapping[str, tuple[float, str]], colour: Mapping[str, str]) -> None:
    """
    Write beside the axes what ends there, without overlap.

    :param axes: with lines
    :param ends: by label, where its line ends and what to write
    :param colour: by label
    """
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = axes.get_position().height * figure.get_size_inches()[1]
    heights = spread([height for height, _ in ends.values()], 0.2 / inches * (high - low), low, high)
    for (label, (_, text)), height in zip(ends.items(), heights, strict=True):
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (1.0, height), (6, 0), color=colour[label], fontweight="bold", fontsize=9, **place)


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """
    :param heights: where labels want to be
    :param gap: least distance between two of them
    :param low: where the lowest can be
    :param high: where the highest can be
    :return: where they can be: in the same order, each group that was too close about its own middle
    """
    groups: list[list[int]] = []
    places = np.array(heights, dtype=np.float64)
    for index in np.argsort(places, kind="stable").tolist():
        groups.append([index])
        while True:
            members = groups[-1]
            reach = gap * (len(members) - 1) / 2
            wanted = sum(heights[member] for member in members) / len(members)
            middle = max(min(wanted, high - reach), low + reach)
            places[members] = middle + np.linspace(-reach, reach, len(members))
            if len(groups) == 1 or places[members[0]] - places[groups[-2][-1]] >= gap * (1 - 1e-9):
                break
            groups[-2:] = [groups[-2] + members]
    return places.tolist()
