"""
The progress bar of every command that takes longer than a moment. It is drawn on stderr, so that what a command prints
can be piped into a file, and only where stderr is a terminal.
"""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status


def watched() -> bool:
    """
    :return: whether a progress bar would be seen
    """
    return Console(stderr=True).is_terminal


def drawn() -> dict[str, Any]:
    """
    :return: for rich's ``Progress``: where it is drawn. What is printed meanwhile goes above it, but not if it goes to
        a file
    """
    return {"console": Console(stderr=True), "redirect_stdout": sys.stdout.isatty()}


def bar() -> Progress:
    """
    :return: the bar, with a count and the time that is left. It leaves nothing behind
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, transient=True, disable=not watched(), **drawn())


def waiting(what: str) -> Status:
    """
    :param what: is done meanwhile, and prints nothing
    :return: shows that something goes on whose end nobody knows
    """
    return Console(stderr=True).status(what)
