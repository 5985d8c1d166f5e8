"""What a calibration found, and what a watch saw."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mergekit_cl.drifting.follow import Outcome, Sighting
from mergekit_cl.drifting.watch import Calibration
from mergekit_cl.report.text import shown

INDEPENDENT = 1.05
"""Autocorrelation time below which rows are called independent."""


def calibration_document(
    calibration: Calibration, output: str, column: str | None, stable_alarms: int, notes: list[str]
) -> dict[str, Any]:
    """The JSON document of a calibration."""
    return {
        "command": "drift calibrate",
        "state": "calibrated",
        "output": output,
        "column": column,
        **asdict(calibration),
        "stable_alarms": stable_alarms,
        "notes": notes,
    }


def calibration_lines(calibration: Calibration, output: str, column: str | None) -> list[str]:
    """The same for people."""
    found = calibration
    unit = "" if found.delta is None else f" standard deviations, delta {found.delta:g}"
    time = found.autocorrelation_time
    remembers = (
        "its rows are independent"
        if time < INDEPENDENT
        else f"{time:.3g} of its rows count as one independent row: blocks of {found.block:,} rows"
    )
    return [
        f"{shown(output)}: {found.detector} on {_of(column)}, "
        f"a false alarm every {found.arl:,} rows on average",
        f"stable period: {found.rows:,} rows, mean {found.mean:.4g}, "
        f"standard deviation {found.standard_deviation:.3g}",
        remembers,
        f"threshold {found.threshold:.4g}{unit}",
        f"next: clmerge drift watch LOSSES --state {shown(output)}",
    ]


def watch_document(outcome: Outcome, state: str) -> dict[str, Any]:
    """The JSON document of a watch."""
    ended = outcome.ended
    return {
        "command": "drift watch",
        "state": "interrupted"
        if isinstance(ended, int)
        else ("alarm" if outcome.alarms else "no alarm"),
        "path": outcome.name,
        "output": state,
        "column": outcome.column,
        "first_row": outcome.first_row,
        "rows": outcome.rows,
        "lacking": outcome.lacking,
        "alarms": [asdict(alarm) for alarm in outcome.alarms],
        "notes": outcome.notes,
    }


def alarm_line(alarm: Sighting, outcome: Outcome) -> str:
    """One alarm for people; begins with file and line, as compilers do."""
    column = "" if outcome.column is None else f"{shown(outcome.column)} "
    since = (
        f"since about row {alarm.onset:,}"
        if alarm.onset is not None
        else "since before the first row"
    )
    return (
        f"{shown(outcome.name)}:{alarm.line}: {column}{alarm.value:.6g}: row {alarm.row:,}, "
        f"{alarm.direction}, statistic {alarm.statistic:.4g} > {alarm.threshold:.4g}, {since}"
    )


def watch_summary(outcome: Outcome) -> str:
    """What was watched, for people."""
    last = outcome.first_row + outcome.rows - 1
    rows = f"{outcome.rows:,} new row{'' if outcome.rows == 1 else 's'}"
    span = f" ({outcome.first_row:,} to {last:,})" if outcome.rows else ""
    lacking = f", {outcome.lacking:,} without a value" if outcome.lacking else ""
    count = len(outcome.alarms)
    alarms = f"{count:,} alarm{'' if count == 1 else 's'}" if count else "no alarm"
    return f"{shown(outcome.name)}: {rows}{span}{lacking}: {alarms}"


def _of(column: str | None) -> str:
    return "plain numbers" if column is None else shown(column)
