"""One thing that was found out about an environment, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """
    :param level: ``"ok"``; ``"note"``, which may be as it should be; or ``"problem"``, with which training goes wrong
    :param check: what was looked at
    :param text: what was found
    :param remedy: what to do; every problem has one
    """

    level: Level
    check: str
    text: str
    remedy: str = ""
