"""What a run has finished, so that the same command can go on from there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """Lines of JSON, each forced to the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; one that was cut off by a kill or a power loss is dropped."""
        if not self.path.exists():
            return []
        entries = []
        for line in self.path.read_bytes().split(b"\n")[:-1]:
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
        return entries

    def append(self, entry: dict[str, Any]) -> None:
        """Record something that is already on the disk."""
        whole = self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0
        with self.path.open("ab") as stream:
            stream.truncate(whole)
            stream.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
