"""Rows of text as the files that `clmerge fisher --data` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` rows at even distances, all of them where there are fewer."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def split(rows: Sequence[Any], share: float = 0.8) -> tuple[Sequence[Any], Sequence[Any]]:
    """A training part and a held-out part, each in one piece: neighbouring rows resemble."""
    cut = int(len(rows) * share)
    return rows[:cut], rows[cut:]
