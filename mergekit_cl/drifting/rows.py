"""The numbers of a stream, line by line, with what has to be known about where they stood."""

from __future__ import annotations

from mergekit_cl.drifting.parsing import Absent, Stream, listed, no_column, stream_of
from mergekit_cl.errors import DataError

COLUMN = "loss"
"""What is watched where nobody says what: the key that training logs have."""


class Rows:
    """Reads one stream. name: of the file, for messages. asked: whether the user named the column.

    lines: taken so far. values: of them, numbers. lacking: rows without a value in the column.
    """

    def __init__(self, name: str, column: str = COLUMN, *, asked: bool = False) -> None:
        self.name = name
        self.column = column
        self.lines = 0
        self.values = 0
        self.lacking = 0
        self._asked = asked
        self._stream: Stream | None = None
        self._first_lacking: tuple[str, tuple[str, ...]] | None = None

    @property
    def has_columns(self) -> bool:
        """Whether the rows have columns; known from the first line on."""
        return self._stream is not None and self._stream.columns

    def take(self, raw: bytes) -> float | None:
        """The number on the next line, None where it has none.

        Raises DataError or NonFiniteError, with file and line, for what is not a row.
        """
        self.lines += 1
        where = f"{self.name}:{self.lines}"
        line = self._text(raw, where)
        if not line.strip():
            return None
        if self._stream is None:
            self._stream = self._begun(line, where)
            if self._stream.header:
                return None
        found = self._stream.parse(line, where)
        if isinstance(found, Absent):
            self.lacking += 1
            self._first_lacking = self._first_lacking or (where, found.names)
            return None
        self.values += 1
        return found

    def resume(self, first: bytes, lines: int, values: int) -> None:
        """Stand behind so many lines and values of a stream that begins with the line `first`."""
        self.lines = 1
        where = f"{self.name}:1"
        self._stream = self._begun(self._text(first, where), where)
        self.lines, self.values = lines, values

    def check_found(self) -> None:
        """Raise DataError where there was no row, or none with the column."""
        if self.values:
            return
        if self._first_lacking is not None:
            where, names = self._first_lacking
            raise no_column(self.column, names, where)
        raise DataError(
            "a stream has no rows" if self.lines else "a stream is empty", detail=self.name
        )

    def doubt(self) -> str | None:
        """What to say while no row has had the column: its name may be mistyped."""
        if self.values or self._first_lacking is None:
            return None
        where, names = self._first_lacking
        return f"{where}: no {self.column!r} so far; it has {listed(names)}"

    def _begun(self, line: str, where: str) -> Stream:
        stream = stream_of(line, self.column, where)
        if self._asked and not stream.columns:
            raise DataError(
                f"plain numbers have no column {self.column!r}",
                detail=f"{where}: {line.strip()!r:.60}",
                hint="leave --column out",
            )
        return stream

    def _text(self, raw: bytes, where: str) -> str:
        try:
            # A byte order mark at the start is a habit of some editors, not content.
            return raw.decode("utf-8-sig" if self.lines == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DataError("a line is not UTF-8 text", detail=f"{where}: {raw[:40]!r}") from None
