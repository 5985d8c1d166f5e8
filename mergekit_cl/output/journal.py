"""What a run has finished, so that the same command can go on from there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mergekit_cl.output.durable import sync


class Journal:
    """Lines of JSON, each forced to the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: int | None = None

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; one that was cut off by a kill or a power loss is dropped."""
        entries: list[dict[str, Any]] = []
        self._whole = 0
        for line in self._lines():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not isinstance(entry, dict):
                break
            entries.append(entry)
            self._whole += len(line) + 1
        return entries

    def append(self, entry: dict[str, Any]) -> None:
        """Record something that is already on the disk, after what `read` gives."""
        if self._whole is None:
            self.read()
        is_new = not self.path.exists()
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self.path.open("ab") as stream:
            stream.truncate(self._whole)
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        if is_new:
            sync(self.path.parent)
        self._whole = (self._whole or 0) + len(line)

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
