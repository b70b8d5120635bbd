"""A diagnosis as tables in a terminal."""

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from persist_sb3.diagnosis.finding import Finding
from persist_sb3.diagnosis.probe import Play, series
from persist_sb3.metrics import SurvivalCurve

MARKS = {"ok": "[green]✓[/green]", "note": "[yellow]![/yellow]", "problem": "[red]✗[/red]"}
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 48
#: Sources that are listed.
MOST = 32


def findings_table(findings: Sequence[Finding]) -> Table:
    """
    :param findings: what was found
    :return: a row each, with its remedy beneath
    """
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for finding in findings:
        remedy = f"\n[cyan]→ {escape(finding.remedy)}[/cyan]" if finding.remedy else ""
        table.add_row(MARKS[finding.level], escape(finding.check), escape(finding.text) + remedy)
    return table


def sources_table(plays: Sequence[Play]) -> Table:
    """
    :param plays: episodes
    :return: where an internal variable could be: every number that the environment shows, with the range seen
    """
    first = plays[0].numbers[0]
    later = dict.fromkeys(path for one in plays for moment in one.numbers for path in moment)
    paths = sorted(later, key=lambda path: (path.startswith("obs"), path not in first))
    table = Table(title="where internal variables could be", title_justify="left")
    for name, justify in (
        ("source", "left"),
        ("at reset", "right"),
        ("least", "right"),
        ("greatest", "right"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for path in paths[:MOST]:
        values = series(plays, path)
        at_reset = np.array([one.numbers[0].get(path, np.nan) for one in plays])
        seen = values[np.isfinite(values)]
        notes = []
        if path not in first:
            notes.append("not at reset, where a source must be too")
        elif len(seen) and seen.min() == seen.max():
            notes.append("constant")
        start = "" if np.isnan(at_reset).any() else _span(at_reset)
        least, most = (f"{seen.min():.4g}", f"{seen.max():.4g}") if len(seen) else ("", "")
        table.add_row(escape(path), start, least, most, ", ".join(notes))
    if len(paths) > MOST:
        table.caption = f"and {len(paths) - MOST} more"
    return table


def _span(values: np.ndarray) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def survival_lines(curve: SurvivalCurve, episodes: int, what: str) -> RenderableType:
    """
    :param curve: of the time alive
    :param episodes: that it was made of
    :param what: ends a life
    :return: the curve, its median, and the share alive at a few times
    """
    times = np.linspace(0.0, curve.last, WIDTH)
    heights = np.rint(curve.at(times) * (len(BLOCKS) - 1)).astype(int)
    median = f"{curve.median:.0f}" if math.isfinite(curve.median) else f"beyond {curve.last:.0f}"
    table = Table(show_header=True, box=None, pad_edge=False)
    ticks = np.unique(np.rint(np.linspace(0.0, curve.last, 5)))
    table.add_column("steps")
    for tick in ticks:
        table.add_column(f"{tick:.0f}", justify="right")
    table.add_row("alive", *(f"{share:.0%}" for share in curve.at(ticks)))
    return Group(
        Text(f"survival under random actions ({episodes} episodes, until {what}): median {median} steps"),
        Text("".join(BLOCKS[height] for height in heights), style="green"),
        table,
    )
