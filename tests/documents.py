"""The pages of the documentation, and the blocks in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """
    What stands between two fences.

    :param where: page and line
    :param language: what the first fence says
    :param text: what stands between
    """

    where: str
    language: str
    text: str


def name_of(page: Path) -> str:
    """
    :param page: of the documentation
    :return: its path in the repository
    """
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """
    :param page: of the documentation
    :param language: of the blocks. Default: any
    :return: its blocks
    """
    text = page.read_text(encoding="utf-8")
    found = [
        Block(f"{name_of(page)}:{text.count(chr(10), 0, match.start()) + 1}", match[1], match[2])
        for match in _FENCED.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]
