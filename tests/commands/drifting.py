"""Streams of losses for the tests of `clmerge drift`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.commands.running import Result, clmerge

SHIFT_AT = 300
"""Rows of `drifting` before its level rises."""


def stable(rows: int = 1000, seed: int = 1) -> list[float]:
    """Losses around 2.7."""
    return [round(float(x), 6) for x in 2.7 + 0.2 * np.random.default_rng(seed).normal(size=rows)]


def drifting(rows: int = 400, seed: int = 9) -> list[float]:
    """The same, one and a half standard deviations higher from row `SHIFT_AT` + 1 on."""
    return [x + 0.3 * (row >= SHIFT_AT) for row, x in enumerate(stable(rows, seed))]


def objects(values: Iterable[float], column: str = "loss") -> str:
    return "".join(json.dumps({"step": k, column: x}) + "\n" for k, x in enumerate(values))


def numbers(values: Iterable[float]) -> str:
    return "".join(f"{x!r}\n" for x in values)


def table(values: Iterable[float], column: str = "loss", separator: str = ",") -> str:
    rows = "".join(f"{k}{separator}{x!r}\n" for k, x in enumerate(values))
    return f"step{separator}{column}\n{rows}"


def calibrated(folder: Path, *more: str, text: str | None = None) -> Path:
    """A state in a folder, calibrated on `stable`."""
    (folder / "stable.jsonl").write_text(text if text is not None else objects(stable()))
    state = folder / "drift.json"
    made = clmerge(
        "drift", "calibrate", folder / "stable.jsonl", "--arl", "2000", "-o", state, *more
    )
    assert made.code == 0, made
    return state


def watch(state: Path, losses: Path | str, *more: str) -> Result:
    return clmerge("drift", "watch", losses, "--state", state, *more)
