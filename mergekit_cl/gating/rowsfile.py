"""Per-row losses as a file, from which a decision can be made again without the models.

Lines of JSON: first what was measured, then a row each with the nats of every model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mergekit_cl.decide.pairing import Rows
from mergekit_cl.errors import FormatError, InputError, OutputError
from mergekit_cl.gating.losses import Measured, Model
from mergekit_cl.output.durable import write_durably

FORMAT = "clmerge.rows/1"


def write_rows(path: Path, measured: Measured) -> None:
    """Write the losses of every model on every row; the file is there whole or not at all."""
    content = "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in _lines(measured))
    try:
        write_durably(path, content.encode())
    except OSError as error:
        raise OutputError(
            "the losses cannot be written", detail=f"--write-rows {path}: {error.strerror}"
        ) from error


def read_rows_file(path: Path) -> Measured:
    """Read what `write_rows` wrote; raises InputError, FormatError for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            "the losses cannot be read", detail=f"--rows {path}: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise FormatError("the losses are no text", detail=f"--rows {path}") from error
    return _Reading(path).whole(lines)


def _lines(measured: Measured) -> Iterator[dict[str, Any]]:
    first = next(iter(measured.losses.values()))
    yield {
        "format": FORMAT,
        "models": {
            role: {"path": one.path, "digest": one.digest} for role, one in measured.models.items()
        },
        "suites": {
            name: {"digest": digest, "rows": len(first[name].ids)}
            for name, digest in measured.suites.items()
        },
        "max_length": measured.max_length,
    }
    for suite, one in first.items():
        by_role = {role: suites[suite] for role, suites in measured.losses.items()}
        for k, name in enumerate(one.ids):
            line: dict[str, Any] = {"suite": suite, "id": name, "tokens": int(one.tokens[k])}
            line["nats"] = {role: float(losses.nats[k]) for role, losses in by_role.items()}
            if one.correct is not None:
                line["correct"] = {
                    role: bool(losses.correct[k])
                    for role, losses in by_role.items()
                    if losses.correct is not None
                }
            yield line


class _Reading:
    """One file being taken apart; `number` is the line for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 1

    def whole(self, lines: list[str]) -> Measured:
        """The measurement that the lines hold."""
        head = self._object(lines[0] if lines else "")
        if head.get("format") != FORMAT:
            self._refuse(f"no file of per-row losses ({FORMAT})")
        try:
            models = {
                str(r): Model(str(m["path"]), str(m["digest"])) for r, m in _items(head, "models")
            }
            suites = {str(name): str(s["digest"]) for name, s in _items(head, "suites")}
            counts = {str(name): int(s["rows"]) for name, s in _items(head, "suites")}
            max_length = int(head["max_length"])
        except (KeyError, TypeError, ValueError) as error:
            self._refuse(f"its first line lacks {error}")
        if not {"candidate", "reference"} <= models.keys():
            self._refuse("it holds no candidate and reference")
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in suites}
        for self.number, line in enumerate(lines[1:], 2):
            row = self._object(line)
            if row.get("suite") not in rows:
                self._refuse(f"a row of suite {row.get('suite')!r}, which the first line lacks")
            rows[row["suite"]].append(self._row(row, models))
        for name, found in rows.items():
            if len(found) != counts[name] or not found:
                self._refuse(f"suite {name} has {len(found)} rows of {counts[name]}")
        losses = {
            role: {name: _rows_of(found, role) for name, found in rows.items()} for role in models
        }
        return Measured(models, suites, losses, max_length)

    def _object(self, line: str) -> dict[str, Any]:
        try:
            found = json.loads(line, parse_constant=lambda name: self._refuse(f"{name} as a loss"))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self._refuse("no JSON object")
        return found

    def _row(self, row: dict[str, Any], models: Mapping[str, Model]) -> dict[str, Any]:
        nats, right = row.get("nats"), row.get("correct")
        if not isinstance(nats, dict) or nats.keys() != models.keys():
            self._refuse("a row needs nats of every model")
        if not all(isinstance(one, float | int) for one in nats.values()):
            self._refuse("nats are numbers")
        tokens = row.get("tokens")
        if not isinstance(row.get("id"), str) or not isinstance(tokens, int) or tokens < 1:
            self._refuse("a row needs an id and tokens above 0")
        if right is not None and not (isinstance(right, dict) and right.keys() == models.keys()):
            self._refuse("`correct` is known of some models only")
        return row

    def _refuse(self, what: str) -> NoReturn:
        raise FormatError(
            "the losses are not those that --write-rows writes",
            detail=f"--rows {self.path}, line {self.number}: {what}",
        )


def _items(head: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    return list(dict(head[key]).items())


def _rows_of(rows: list[dict[str, Any]], role: str) -> Rows:
    right = [row.get("correct") for row in rows]
    flags = [bool(one[role]) for one in right if one is not None]
    return Rows(
        tuple(row["id"] for row in rows),
        np.array([row["nats"][role] for row in rows], dtype=np.float64),
        np.array([row["tokens"] for row in rows], dtype=np.int64),
        np.array(flags, dtype=np.bool_) if len(flags) == len(rows) else None,
    )
