"""`metrics.jsonl`: one JSON object a line, the same to the byte for the same run.

What differs from run to run, such as seconds, goes to `times.jsonl` beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


class Log:
    """A file of lines that a state on the disk knows the length of.

    path: None writes nothing, for processes that do not lead.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: IO[bytes] | None = None if path is None else path.open("ab")

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return 0 if self._file is None else self._file.tell()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line. NaN and infinities, which JSON lacks, are refused by ValueError."""
        if self._file is not None:
            line = json.dumps(entry, sort_keys=True, allow_nan=False)
            self._file.write(f"{line}\n".encode())

    @property
    def lines(self) -> int:
        """How many there are, those of the file as it was found included."""
        if self._file is None:
            return 0
        self.flush()
        with Path(self._file.name).open("rb") as written:
            return sum(1 for _ in written)

    def flush(self) -> None:
        """Hand what was written to the system: it outlives this process."""
        if self._file is not None:
            self._file.flush()

    def sync(self) -> None:
        """Force what was written to the disk, as a state is about to count on it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def cut(self, length: int) -> None:
        """Drop all lines after the first `length` bytes: they come again."""
        if self._file is not None:
            self._file.flush()
            self._file.truncate(length)
            self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Write what is held and close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
