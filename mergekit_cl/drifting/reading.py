"""The lines of a file from where it was left, and all the values of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from mergekit_cl.checkpoint.nearest import nearest_path
from mergekit_cl.drifting.rows import Rows
from mergekit_cl.drifting.statefile import Seen
from mergekit_cl.errors import DataError

STDIN = "-"
STDIN_NAME = "stdin"
STDIN_DESCRIPTOR = 0


def open_rows(path: Path) -> BinaryIO:
    """A file of rows, open. Raises DataError, with the nearest name where there is none."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        near = nearest_path(path)
        raise DataError(
            "there is no such file", detail=str(path), hint=str(near) if near else None
        ) from None
    except OSError as error:
        raise DataError("a file cannot be read", detail=f"{path}: {error.strerror}") from error
    return stream


def read_values(path: str, rows: Rows) -> list[float]:
    """Every value of a file, or of standard input for `-`. Raises DataError or NonFiniteError."""
    if path == STDIN:
        with os.fdopen(os.dup(STDIN_DESCRIPTOR), "rb") as stream:
            found = [value for line in stream if (value := rows.take(line)) is not None]
    else:
        with open_rows(Path(path)) as stream:
            found = [value for line in stream if (value := rows.take(line)) is not None]
    rows.check_found()
    return found


class Lines:
    """The finished lines of a file behind the beginning that was read before.

    known: whether the file begins with what `seen` spoke of. unfinished: whether it ends within a
    line: somebody is still writing that one, so it stays for the next time.
    """

    def __init__(self, stream: BinaryIO, name: str, seen: Seen | None, rows: Rows) -> None:
        self._stream = stream
        self._name = name
        self._rows = rows
        self.unfinished = False
        self._begin()
        self.known = seen is not None and self._skip(seen)
        if not self.known:
            self._begin()

    def _begin(self) -> None:
        self._stream.seek(0)
        self._bytes = 0
        self._count = 0
        self._digest = blake2b(digest_size=32)

    def _skip(self, seen: Seen) -> bool:
        first: bytes | None = None
        while self._bytes < seen.bytes:
            line = self._stream.readline(seen.bytes - self._bytes)
            if not line:
                return False
            first = line if first is None and line.strip() else first
            self.accept(line)
        if self._digest.hexdigest() != seen.digest:
            return False
        if first is not None:
            self._rows.resume(first, seen.lines, seen.rows)
        return True

    def __iter__(self) -> Iterator[bytes]:
        for line in self._stream:
            self.unfinished = not line.endswith(b"\n")
            if self.unfinished:
                return
            yield line

    def accept(self, line: bytes) -> None:
        """The line has been taken in: it belongs to what was seen."""
        self._bytes += len(line)
        self._count += 1
        self._digest.update(line)

    @property
    def seen(self) -> Seen:
        """How far the file has been read."""
        digest = self._digest.hexdigest()
        return Seen(self._name, self._rows.values, self._count, self._bytes, digest)
