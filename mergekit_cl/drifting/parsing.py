"""What one line of a stream says: a number, an object with a number in it, or a table's row."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from math import isfinite
from typing import Any

from mergekit_cl.errors import DataError, NonFiniteError

LONGEST = 10**300
"""Integers beyond it are no finite float."""


@dataclass(frozen=True)
class Absent:
    """A row without a value in the column that is read; names: of those that it has."""

    names: tuple[str, ...]


LineParser = Callable[[str, str], float | Absent]
"""(line, where) -> its value; raises DataError or NonFiniteError. where: file and line."""


@dataclass(frozen=True)
class Stream:
    """How the lines of a stream are read. columns: whether they have any. header: whether the
    first line is one, and no row."""

    parse: LineParser
    columns: bool
    header: bool = False


def stream_of(first: str, column: str, where: str) -> Stream:
    """How to read a stream that begins with this line; whatever its file is called.

    `{` begins JSON lines, a number begins plain numbers, anything else is the header of a table,
    separated by tabs if it holds one, else by commas. Raises DataError for a JSON array and for a
    table without the column.
    """
    begin = first.lstrip()[0]
    if begin == "{":
        return Stream(partial(_from_object, column), columns=True)
    if begin == "[":
        raise DataError(
            "a stream is one JSON array", detail=where, hint='write {"loss": ...} a line'
        )
    if _number_of(first.strip()) is not None:
        return Stream(_from_number, columns=False)
    delimiter = "\t" if "\t" in first else ","
    header = _cells(first, delimiter, where)
    if header.count(column) > 1:
        raise DataError(f"a table has more than one column {column!r}", detail=where)
    if column not in header:
        raise no_column(column, header, where)
    return Stream(partial(_from_cells, header, delimiter, column), columns=True, header=True)


def no_column(column: str, names: Sequence[str], where: str) -> DataError:
    """The error of a stream that has no such column; with the nearest name that it has."""
    near = get_close_matches(column, names, n=1, cutoff=0.5)
    return DataError(
        f"there is no column {column!r}",
        detail=f"{where}: it has {listed(names)}",
        hint=f"--column {near[0]}" if near else "--column NAME",
    )


def listed(names: Sequence[str]) -> str:
    """Some names of columns, for a message."""
    return f"{', '.join(repr(name) for name in names[:12]) or 'no columns':.200}"


def _from_number(line: str, where: str) -> float:
    found = _number_of(line.strip())
    if found is None:
        raise DataError("a line is no number", detail=f"{where}: {line.strip()!r:.60}")
    return _finite(found, "a value", where)


def _from_object(column: str, line: str, where: str) -> float | Absent:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        said = f"{where}: {error.msg} at column {error.colno}"
        raise DataError("a line is not JSON", detail=said) from None
    except (RecursionError, ValueError) as error:  # too deep, or an integer of too many digits
        raise DataError("a line is not JSON", detail=f"{where}: {error}") from None
    if not isinstance(row, dict):
        raise DataError("a row is not a JSON object", detail=f"{where}: {line.strip()!r:.60}")
    if column not in row:
        return Absent(tuple(row))
    value: Any = row[column]
    if isinstance(value, bool) or not isinstance(value, int | float):
        said = "null" if value is None else f"{value!r:.60}"
        raise DataError(f"{column!r} is no number", detail=f"{where}: {said}")
    return _finite(value, repr(column), where)


def _from_cells(
    header: list[str], delimiter: str, column: str, line: str, where: str
) -> float | Absent:
    cells = _cells(line, delimiter, where)
    if len(cells) != len(header):
        raise DataError(
            "a row has another number of cells than the header",
            detail=f"{where}: {len(cells)} cells, {len(header)} columns",
        )
    cell = cells[header.index(column)]
    if not cell:
        return Absent(tuple(name for name, value in zip(header, cells, strict=True) if value))
    found = _number_of(cell)
    if found is None:
        raise DataError(f"{column!r} is no number", detail=f"{where}: {cell!r:.60}")
    return _finite(found, repr(column), where)


def _cells(line: str, delimiter: str, where: str) -> list[str]:
    try:
        (cells,) = csv.reader([line.rstrip("\r\n")], delimiter=delimiter, strict=True)
    except (csv.Error, ValueError) as error:
        raise DataError("the table is broken", detail=f"{where}: {error}") from None
    return [cell.strip() for cell in cells]


def _number_of(text: str) -> float | None:
    try:
        # float() takes 1_000 too, which no program writes.
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _finite(value: float, what: str, where: str) -> float:
    if abs(value) > LONGEST or not isfinite(value):
        raise NonFiniteError(
            f"{what} is no finite number",
            detail=f"{where}: {value!r:.60}",
            hint="find out what happened there; to watch on, leave the row out",
        )
    return float(value)
