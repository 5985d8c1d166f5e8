"""Names that came from files, made safe to print: a terminal obeys control characters."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def shown(value: object, limit: int | None = None) -> str:
    """One line of text in which every character is visible.

    Control characters, line breaks, direction marks and halves of surrogate pairs become escapes.
    limit: characters after which the rest is cut.
    """
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escape(c) for c in text)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def log_line(text: str) -> str:
    """One visible line that a GitHub workflow takes for no command (`::` first, or `##[`)."""
    safe = shown(text).replace("##[", "\\x23#[")
    return safe.replace("::", "\\x3a:", 1) if safe.lstrip().startswith("::") else safe


def print_lines(lines: list[str]) -> None:
    """Print a result on stdout, whatever characters its encoding lacks."""
    text = "\n".join(lines) + "\n"
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def columns(rows: Sequence[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Rows as lines with aligned columns, two spaces apart; right: columns aligned to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))] if rows else []
    return [
        "  ".join(
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
