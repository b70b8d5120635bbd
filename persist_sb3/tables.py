"""Tables: of a report, the figures of :mod:`persist_sb3.summary`, a column a run; and in Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from persist_sb3.plots import colours

Figures = Mapping[str, Any]
NOTHING = "–"


def comparison(runs: Sequence[Figures]) -> Table:
    """
    :param runs: of each its ``label``, and its ``evaluation`` and ``training`` figures, either of them None
    :return: the table
    """
    table = Table(Column("", no_wrap=True))
    for label, colour in colours([run["label"] for run in runs]).items():
        table.add_column(escape(label), header_style=f"bold {colour}", justify="right")
    for part, cells_of in (("evaluation", _evaluation), ("training", _training)):
        columns = [cells_of(run[part]) if run[part] else {} for run in runs]
        names = dict.fromkeys(name for column in columns for name in column)
        if names:
            table.add_section()
            table.add_row(f"[bold]{part}[/bold]")
        for name in names:
            table.add_row(escape(name), *(column.get(name, NOTHING) for column in columns))
    return table


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """
    :param columns: their names, ``c`` of them
    :param rows: a cell a column, ``c`` each; None for an empty one
    :return: the table in Markdown
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("|".join(["", *map(_cell, line), ""]) for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _evaluation(run: Figures) -> dict[str, str]:
    time = run["time_to_violation"]
    return {
        "episodes": f"{run['episodes']:,}",
        "survive": f"{run['survival']['share']:.0%} ({run['survival']['low']:.0%} to {run['survival']['high']:.0%})",
        "median steps to violation": f"{time['median']:.0f}" if math.isfinite(time["median"]) else "most survive",
        f"mean steps alive, of {time['horizon']:g}": f"{time['restricted_mean']:.0f}",
        "violations per 1k steps": f"{run['violations_per_1k_steps']:.2f}",
        **{f"satisfied: {constraint}": _percent(share) for constraint, share in run["satisfaction"].items()},
        **_deaths(run),
        "recover from near the boundary": _percent(run["recovery_rate"]),
        **_interventions(run),
        "task return": _mean(run["task_return"]),
        **{f"reward term: {term}": _mean(mean) for term, mean in run["reward_terms"].items() if term != "task"},
        **{f"  bonus: {name}": _mean(mean) for name, mean in run["bonuses"].items()},
    }


def _training(run: Figures) -> dict[str, str]:
    return {
        "steps": f"{run['timesteps']:,}",
        "episodes": f"{run['episodes']:,}",
        "violations": f"{run['violations']:,}",
        "violations per 1k steps": f"{run['violations_per_1k_steps']:.2f}",
        "  in the last tenth": f"{run['violations_per_1k_steps_in_last_tenth']:.2f}",
        **_deaths(run),
        **_interventions(run),
        **_intrinsic(run),
    }


def _intrinsic(run: Figures) -> dict[str, str]:
    bonuses = {f"  {name}": bonus for name, bonus in run["bonuses"].items()}
    share, correlation = "intrinsic share of the reward", "rank correlation with time alive"
    figures = [
        (share, run["intrinsic_share"], _percent),
        *((share + name, bonus["share"], _percent) for name, bonus in bonuses.items()),
        (correlation, run["intrinsic_correlation"], _signed),
        *((correlation + name, bonus["correlation"], _signed) for name, bonus in bonuses.items()),
    ]
    return {name: written(value) for name, value, written in figures if value is not None}


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _interventions(run: Figures) -> dict[str, str]:
    rate = run["intervention_rate"]
    return {} if rate is None else {"actions changed by the shield": _percent(rate)}


def _deaths(run: Figures) -> dict[str, str]:
    return {f"violated first: {constraint}": f"{count:,}" for constraint, count in (run["deaths"] or {}).items()}


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{share:.1%}"


def _mean(interval: Figures) -> str:
    half_width = interval["high"] - interval["mean"]
    return f"{interval['mean']:.2f}" + ("" if math.isnan(half_width) else f" ± {half_width:.2f}")
