"""Rows of text from the files a user names.

Formats, by suffix: jsonl and ndjson (an object a line), json (one array, or an object a line), csv
and tsv (with a header line), parquet, txt (running text, cut into passages). See fields.py for what
the fields mean, passages.py for how text is cut, choose.py for which rows are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mergekit_cl.errors import DataError
from mergekit_cl.training.choose import Choice, choose
from mergekit_cl.training.fields import as_row
from mergekit_cl.training.files import find_files
from mergekit_cl.training.records import read_records
from mergekit_cl.training.rows import Kind, Row, data_digest

__all__ = ["PASSAGE", "Choice", "Row", "choose", "data_digest", "read_rows"]

PASSAGE = 2048  # characters: about 512 tokens of English


def read_rows(
    paths: Sequence[str | Path],
    *,
    text_field: str | None = None,
    label_field: str | None = None,
    passage: int = PASSAGE,
) -> Iterator[Row]:
    """The rows of all files, one at a time, in file order; repeated rows come as often.

    paths: files, directories or globs. passage: size of a txt file's pieces in characters.
    Paths are checked at once; rows as they are read. Raises DataError for a path that names
    nothing, an empty or undecodable file, a broken line, a field that is missing, rows of
    different kinds, and no rows at all.
    """
    return _rows(find_files(paths), text_field, label_field, passage)


def _rows(
    files: tuple[Path, ...], text_field: str | None, label_field: str | None, passage: int
) -> Iterator[Row]:
    first: Row | None = None
    for file in files:
        empty = True
        for record in read_records(file, passage=passage):
            empty = False
            row = as_row(record, text_field=text_field, label_field=label_field)
            first = first or row
            if row.kind != first.kind:
                raise DataError(
                    "the rows are of different kinds",
                    detail=f"{first.where} is {_NAMES[first.kind]}, "
                    f"{row.where} is {_NAMES[row.kind]}",
                    hint="give the files of one kind, or name the field with --text-field",
                )
            yield row
        if empty:
            raise DataError("a data file holds no rows", detail=str(file))


_NAMES: dict[Kind, str] = {
    "text": "plain text",
    "completion": "a prompt with its completion",
    "chat": "a chat",
    "labelled": "text with a label",
}
