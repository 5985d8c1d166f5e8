"""Watching a file from where it was left, or standard input for as long as it lasts."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mergekit_cl.decide.alarm import Direction
from mergekit_cl.drifting.reading import STDIN_DESCRIPTOR, STDIN_NAME, Lines, open_rows
from mergekit_cl.drifting.rows import COLUMN, Rows
from mergekit_cl.drifting.statefile import StateFile
from mergekit_cl.drifting.watch import Alarm, Watch
from mergekit_cl.errors import DataError, Interrupted, MismatchError
from mergekit_cl.interrupts import deferred_interrupts

CHUNK = 1 << 16
LONGEST_LINE = 1 << 24
SAVED_EVERY = 1.0
"""Seconds after which the state is stored while rows keep coming in faster than that."""


@dataclass(frozen=True)
class Sighting:
    """An alarm, told by where it is in what was read.

    row: of those with a value, from 1; of standard input, of all that this state has watched.
    onset: the row at which the change is estimated to have begun; None where that is before the
    first row.
    """

    row: int
    line: int
    value: float
    direction: Direction
    statistic: float
    threshold: float
    onset: int | None


@dataclass
class Outcome:
    """What one watch saw. rows: new ones with a value. lacking: new ones without."""

    name: str
    column: str | None = None
    first_row: int = 1
    rows: int = 0
    lacking: int = 0
    alarms: list[Sighting] = field(default_factory=list)
    ended: Literal["end", "alarm"] | int = "end"
    notes: list[str] = field(default_factory=list)


Tell = Callable[[Sighting, Outcome], None]
Note = Callable[[str], None]


def rows_for(name: str, asked: str | None, calibrated: str | None) -> Rows:
    """The rows to read: of the column that was asked for, else of the one calibrated on.

    Raises MismatchError where these are two.
    """
    if asked is not None and calibrated is not None and asked != calibrated:
        raise MismatchError(
            "the drift state is of another column",
            detail=f"calibrated on {calibrated!r}, asked for {asked!r}",
            hint=f"clmerge drift calibrate STABLE --column {asked} --arl N -o {asked}.json",
        )
    return Rows(name, asked or calibrated or COLUMN, asked=asked is not None)


class Follower:
    """Takes lines in, one after another, and stops after the first alarm unless told not to.

    tell: called at each alarm, before the state that knows of it is stored. before: rows watched
    earlier that are not counted in what is read now.
    """

    def __init__(
        self, rows: Rows, watch: Watch, tell: Tell, *, before: int, every_alarm: bool
    ) -> None:
        self._rows = rows
        self._watch = watch
        self._tell = tell
        self._before = before
        self._every_alarm = every_alarm
        self.outcome = Outcome(rows.name, first_row=watch.rows - before + 1)

    def take(self, line: bytes) -> bool:
        """Take a line in; whether to go on."""
        rows, outcome = self._rows, self.outcome
        value = rows.take(line)
        outcome.column = rows.column if rows.has_columns else None
        outcome.lacking = rows.lacking
        if value is None:
            return True
        alarm = self._watch.update(value)
        outcome.rows += 1
        if alarm is None:
            return True
        seen = self._seen(alarm)
        outcome.alarms.append(seen)
        self._tell(seen, outcome)
        if not self._every_alarm:
            outcome.ended = "alarm"
        return self._every_alarm

    def _seen(self, alarm: Alarm) -> Sighting:
        onset = alarm.onset - self._before
        return Sighting(
            row=alarm.row - self._before,
            line=self._rows.lines,
            value=alarm.value,
            direction=alarm.direction,
            statistic=alarm.statistic,
            threshold=alarm.threshold,
            onset=onset if onset >= 1 else None,
        )


def watch_file(
    path: Path, kept: StateFile, asked: str | None, tell: Tell, *, every_alarm: bool
) -> Outcome:
    """Watch the rows of a file that this state has not seen; the state then says how far that was.

    A file is known by its beginning, not by its name: one that does not begin with what was read
    before is read from its first row, by the detector as it stands. A line that has no end yet is
    left for the next time. Raises DataError or NonFiniteError at a bad row; the rows before it are
    taken in.
    """
    state = kept.state
    rows = rows_for(str(path), asked, state.column)
    notes = []
    with open_rows(path) as stream, deferred_interrupts() as stopped:
        lines = Lines(stream, str(path), state.seen, rows)
        if state.seen is not None and not lines.known:
            notes.append(
                f"{path} does not begin with the {state.seen.rows:,} rows that were read of "
                f"{state.seen.name}: it is watched from its first row"
            )
        before = state.watch.rows - rows.values
        follower = Follower(rows, state.watch, tell, before=before, every_alarm=every_alarm)
        try:
            for line in lines:
                more = follower.take(line)
                lines.accept(line)
                if not more:
                    break
                if stopped() is not None:
                    follower.outcome.ended = stopped() or 0
                    break
        finally:
            state.seen = lines.seen
            kept.save()
    if lines.unfinished:
        notes.append(f"{path}:{rows.lines + 1}: has no line end yet, so it is left for next time")
    if follower.outcome.ended == "end":
        rows.check_found()
    follower.outcome.notes = notes
    return follower.outcome


def watch_stdin(
    kept: StateFile, asked: str | None, tell: Tell, note: Note, *, every_alarm: bool
) -> Outcome:
    """Watch standard input until it ends, or until an interrupt, and store the state as it goes.

    note: told at once that no row has the column, since nothing may come after.
    """
    rows = rows_for(STDIN_NAME, asked, kept.state.column)
    follower = Follower(rows, kept.state.watch, tell, before=0, every_alarm=every_alarm)
    try:
        _follow_stdin(follower, rows, kept, note)
    except Interrupted as signal:
        follower.outcome.ended = signal.signal_number
    finally:
        kept.save()
    return follower.outcome


def _follow_stdin(follower: Follower, rows: Rows, kept: StateFile, note: Note) -> None:
    rest, doubted, saved = b"", False, time.monotonic()
    while True:
        # Waiting, a signal ends it at once; with rows in hand, after the last of them.
        select.select([STDIN_DESCRIPTOR], [], [])
        with deferred_interrupts() as stopped:
            chunk = os.read(STDIN_DESCRIPTOR, CHUNK)
            *lines, rest = (rest + chunk).split(b"\n")
            if not chunk and rest:
                lines.append(rest)
            if len(rest) > LONGEST_LINE:
                raise DataError("a line does not end", detail=f"{rows.name}:{rows.lines + 1}")
            if not all(follower.take(line) for line in lines) or not chunk:
                return
            if time.monotonic() > saved + SAVED_EVERY or not _more_is_there():
                kept.save()
                saved = time.monotonic()
            doubt = rows.doubt()
            if doubt is not None and not doubted:
                note(doubt)
                doubted = True
            signal_number = stopped()
            if signal_number is not None:
                raise Interrupted(signal_number)


def _more_is_there() -> bool:
    return bool(select.select([STDIN_DESCRIPTOR], [], [], 0)[0])
