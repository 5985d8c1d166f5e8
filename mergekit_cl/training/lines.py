"""The lines of a text file, decoded one at a time so that an error has a line and an offset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mergekit_cl.errors import DataError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, with their ends.

    Raises DataError where the file cannot be read, is empty, or is not UTF-8.
    """
    offset = 0
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    # A byte order mark at the start is a habit of some editors, not content.
                    yield number, raw.decode("utf-8-sig" if offset == 0 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        "the file is not UTF-8 text",
                        detail=f"{path}: byte {offset + error.start} on line {number}",
                        hint=f"iconv -f LATIN1 -t UTF-8 {path.name}, if it is latin-1",
                    ) from None
                offset += len(raw)
    except OSError as error:
        raise DataError("a data file cannot be read", detail=f"{path}: {error.strerror}") from error
    if offset == 0:
        raise DataError("a data file is empty", detail=str(path))
