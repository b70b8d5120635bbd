"""How benchmarks show figures of several conditions, each measured with several seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.agents import Estimate, intervals


def written(estimate: Estimate, style: str) -> str:
    """
    :param estimate: what :func:`intervals` returned of a condition
    :param style: format of a number
    :return: the cell of a table
    """
    return "{0:{3}} [{1:{3}}, {2:{3}}]".format(*estimate, style)


def tabulate(
    title: str, rows: Mapping[str, Sequence[Mapping[str, float]]], styles: Mapping[str, str]
) -> tuple[Table, dict[str, dict[str, Any]]]:
    """
    :param title: of the table
    :param rows: figures of each seed, by condition; those of a condition may lack some, or have no finite number there
    :param styles: the figures to show, with their formats
    :return: a table of conditions and figures; and for JSON, by figure and condition, its estimate and all scores
    """
    table = Table("", title=title)
    for condition in rows:
        table.add_column(condition, justify="right")
    results: dict[str, dict[str, Any]] = {}
    for name, style in styles.items():
        scores = {c: np.array([seed.get(name, np.nan) for seed in seeds]) for c, seeds in rows.items()}
        scores = {condition: values for condition, values in scores.items() if np.isfinite(values).all()}
        if scores:
            estimates = intervals(scores)
            table.add_row(name, *(written(estimates[c], style) if c in scores else "" for c in rows))
            results[name] = {c: {"mean": estimates[c], "seeds": values.tolist()} for c, values in scores.items()}
    return table, results
