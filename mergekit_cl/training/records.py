"""What the lines of one data file say, before anyone asks what they mean.

A record is (where, fields): where is "file:line" for messages (of parquet, which has no lines,
"file:row"), fields maps names to values.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergekit_cl.errors import DataError
from mergekit_cl.training.lines import read_lines
from mergekit_cl.training.parquet import SUFFIX, read_parquet
from mergekit_cl.training.passages import passages

Record = tuple[str, dict[str, Any]]
TABLES = {".csv": ",", ".tsv": "\t"}
CELL_CHARACTERS = 2**31 - 1


def read_records(path: Path, *, passage: int) -> Iterator[Record]:
    """The records of a jsonl, json, csv, tsv, parquet or txt file, by its suffix, one at a time.

    passage: size in characters of the pieces of a txt file. Raises DataError with file and line.
    """
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return _from_table(path, TABLES[suffix])
    if suffix == SUFFIX:
        return read_parquet(path)
    if suffix in (".txt", ".text"):
        return _from_text(path, passage)
    if suffix == ".json" and _begins_with_bracket(path):
        return _from_array(path)
    return _from_json_lines(path)


def _from_json_lines(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _object(_parsed(line, where), where)


def _from_array(path: Path) -> Iterator[Record]:
    text = "".join(line for _, line in read_lines(path))
    for index, value in enumerate(_parsed(text, str(path)), start=1):
        where = f"{path}: item {index}"
        yield where, _object(value, where)


def _from_table(path: Path, delimiter: str) -> Iterator[Record]:
    # The module's own bound of 131,072 characters a cell is less than many a document has.
    csv.field_size_limit(CELL_CHARACTERS)
    reader = csv.reader((line for _, line in read_lines(path)), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if names is None:
                names = _header(cells, where)
                continue
            if len(cells) != len(names):
                raise DataError(
                    "a row has another number of cells than the header",
                    detail=f"{where}: {len(cells)} cells, {len(names)} columns",
                    hint="put text that holds the separator in double quotes",
                )
            yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DataError(
            "the table is broken", detail=f"{path}:{reader.line_num}: {error}"
        ) from None


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "" in names or len(set(names)) != len(names):
        raise DataError(
            "the first line of a table must name its columns, each once",
            detail=f"{where}: {', '.join(names):.100}",
            hint="add a header line such as: text,label",
        )
    return names


def _from_text(path: Path, passage: int) -> Iterator[Record]:
    for number, text in passages(read_lines(path), passage):
        yield f"{path}:{number}", {"text": text}


def _begins_with_bracket(path: Path) -> bool:
    first = next((line for _, line in read_lines(path) if line.strip()), "")
    return first.lstrip().startswith("[")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = "" if error.lineno == 1 else f" line {error.lineno}"
        detail = f"{where}:{line} {error.msg} at column {error.colno}"
        raise DataError("a line is not JSON", detail=detail) from None
    except RecursionError:
        raise DataError("a line is not JSON", detail=f"{where}: nested too deeply") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            "a row is not a JSON object",
            detail=f"{where}: {type(value).__name__}",
            hint='write one object a line, such as {"text": "..."}',
        )
    return value
