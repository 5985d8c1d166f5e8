"""Documentation pages as sections, tables, code blocks and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next of its level."""
    text = (DOCS / page).read_text()
    marks, _, _ = re.search(rf"(?m)^(#+) {re.escape(heading)}$", text)[0].partition(" ")  # type: ignore[index]
    rest = text.split(f"{marks} {heading}\n", 1)[1]
    return re.split(rf"(?m)^#{{1,{len(marks)}}} ", rest)[0]


def rows_of(text: str) -> Iterator[list[str]]:
    """The cells of each row of every table in a text, heads and rules included."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(text: str, head: str) -> dict[str, str]:
    """{first cell: second cell} of the table whose first head is `head`."""
    found: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        cells = next(rows_of(line), None)
        if cells is None:
            inside = False
        elif cells[0] == head:
            inside = True
        elif inside and not set(cells[0]) <= {"-"}:
            found[cells[0]] = cells[-1]
    return found


def anchor(heading: str) -> str:
    """The link to a heading."""
    return heading.lower().replace(" ", "-")


def commands_md() -> str:
    """The page of commands."""
    return (DOCS / "commands.md").read_text()


def quoted(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def code_blocks(text: str) -> list[str]:
    """The content of every fenced block."""
    return re.findall(r"(?s)```\w*\n(.*?)```", text)
