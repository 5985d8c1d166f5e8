"""The file that a watch is kept in: calibration, where the detector stands, what was read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint.nearest import nearest_path
from mergekit_cl.drifting.plain import from_plain
from mergekit_cl.drifting.watch import Watch
from mergekit_cl.errors import FormatError, InputError, OutputError
from mergekit_cl.output.durable import write_durably

CALIBRATE = "clmerge drift calibrate STABLE --arl N makes one"


@dataclass(frozen=True)
class Seen:
    """How far a file has been read.

    rows: with a value. lines, bytes: from its beginning. digest: blake2b of those bytes, by which
    it is known again, whatever it is called then.
    """

    name: str
    rows: int
    lines: int
    bytes: int
    digest: str


@dataclass
class State:
    """column: what the stable period's values were called, None where they had no name."""

    watch: Watch
    column: str | None
    seen: Seen | None = None

    def to_json(self) -> dict[str, Any]:
        """As it lies in the file."""
        seen = None if self.seen is None else asdict(self.seen)
        return {**self.watch.to_json(), "column": self.column, "seen": seen}


@dataclass(frozen=True)
class _Beside:
    column: str | None
    seen: Seen | None


class StateFile:
    """One state on the disk, whole at any moment. state: as it was read, and is then changed."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises InputError where it is missing, FormatError for anything else."""
        self.path = path.resolve()
        self._shown = str(path)
        self._stamp = _stamp(self.path)
        self.state = read_state(path)

    def save(self) -> None:
        """Write the state. Raises OutputError where another process has written there meanwhile."""
        if _stamp(self.path) != self._stamp:
            raise OutputError(
                "the drift state was changed by another process meanwhile",
                detail=f"{self._shown}: left as it is now",
                hint="give each stream a state of its own",
            )
        write_state(self.path, self.state)
        self._stamp = _stamp(self.path)


def read_state(path: Path) -> State:
    """What lies at a path. Raises InputError where it is missing, FormatError for anything else."""
    content = _read(path)
    beside = {key: content.pop(key) for key in ("column", "seen") if key in content}
    watch = Watch.from_json(content, str(path))
    known = from_plain(_Beside, beside, str(path))
    return State(watch, known.column, known.seen)


def write_state(path: Path, state: State) -> None:
    """Put a state at a path, durably and in one step. Raises OutputError."""
    text = json.dumps(state.to_json(), sort_keys=True, indent=1, allow_nan=False)
    try:
        write_durably(path.resolve(), (text + "\n").encode())
    except OSError as error:
        raise OutputError(
            "the drift state cannot be written", detail=f"{path}: {error.strerror}"
        ) from error


def check_place(path: Path, *, force: bool) -> None:
    """Refuse a place that cannot hold a new state, or holds something. Raises OutputError."""
    if not path.parent.is_dir():
        raise OutputError("the output's folder does not exist", detail=str(path))
    if not path.exists() and not path.is_symlink():
        return
    try:
        ours = path.is_file() and str(_read(path).get("format")).startswith("clmerge.drift/")
    except InputError:
        ours = False
    if not ours:
        raise OutputError("the output exists and is no drift state", detail=str(path))
    if not force:
        raise OutputError(
            "the output exists", detail=f"{path}: a drift state", hint="--force replaces it"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        near = nearest_path(path)
        raise InputError(
            "there is no drift state", detail=str(path), hint=str(near) if near else CALIBRATE
        ) from None
    except OSError as error:
        raise InputError(
            "a drift state cannot be read", detail=f"{path}: {error.strerror}"
        ) from error
    except (ValueError, RecursionError):
        raise FormatError("not a drift state", detail=f"{path}: no JSON", hint=CALIBRATE) from None
    if not isinstance(content, dict):
        raise FormatError("not a drift state", detail=f"{path}: no JSON object", hint=CALIBRATE)
    return content


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
