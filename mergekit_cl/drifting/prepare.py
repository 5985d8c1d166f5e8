"""From a file with a stable period to a drift state on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np

from mergekit_cl.decide.trend import trend
from mergekit_cl.drifting.calibrate import DELTA, calibrate
from mergekit_cl.drifting.reading import STDIN, STDIN_NAME, read_values
from mergekit_cl.drifting.rows import COLUMN, Rows
from mergekit_cl.drifting.statefile import State, check_place, write_state
from mergekit_cl.drifting.watch import Calibration, DetectorName, Watch
from mergekit_cl.errors import OptionError

STANDARD_ERRORS = 4.0
"""Of the trend, from which on a stable period is called none: chance exceeds it once in 16,000."""


@dataclass(frozen=True)
class Request:
    """What was asked for; None where a default holds."""

    stable: str
    arl: int
    detector: DetectorName
    column: str | None
    delta: float | None
    output: Path
    force: bool


@dataclass(frozen=True)
class Prepared:
    """What came of it. stable_alarms: of the new detector on the stable period itself."""

    calibration: Calibration
    column: str | None
    stable_alarms: int
    notes: list[str]


def prepare(request: Request) -> Prepared:
    """Calibrate on a stable period and store the state.

    Raises OptionError, DataError, NonFiniteError or OutputError; nothing is written then.
    """
    if request.delta is not None and request.detector == "adwin":
        raise OptionError(
            "adwin has no delta", detail=f"--delta {request.delta:g}", hint="leave it out"
        )
    check_place(request.output, force=request.force)
    name = STDIN_NAME if request.stable == STDIN else request.stable
    rows = Rows(name, request.column or COLUMN, asked=request.column is not None)
    values = read_values(request.stable, rows)
    delta = DELTA if request.delta is None else request.delta
    watch = calibrate(values, request.arl, request.detector, delta=delta)
    column = rows.column if rows.has_columns else None
    write_state(request.output, State(watch, column))
    alarms = alarms_within(watch, values)
    notes = [
        *length_warning(watch.calibration),
        *trend_warning(values),
        *alarms_warning(watch.calibration, alarms),
    ]
    return Prepared(watch.calibration, column, alarms, notes)


def alarms_within(watch: Watch, values: Sequence[float]) -> int:
    """How many alarms a watch raises on values; it is left as it is."""
    trial = deepcopy(watch)
    return sum(trial.update(value) is not None for value in values)


def length_warning(known: Calibration) -> list[str]:
    """Where the stable period is too short for the time between false alarms that was asked for."""
    if known.supported_arl >= known.arl:
        return []
    independent = known.rows / known.autocorrelation_time
    return [
        f"a stable period of {known.rows:,} rows, {independent:,.0f} of them independent, speaks "
        f"for a false alarm every {known.supported_arl:,} rows at most, not every {known.arl:,}: "
        "expect more of them, or give a longer period or a smaller --arl"
    ]


def trend_warning(values: Sequence[float]) -> list[str]:
    """Where the stable period rises or falls."""
    found = trend(np.asarray(values, dtype=np.float64))
    if abs(found.standard_errors) < STANDARD_ERRORS:
        return []
    return [
        f"the stable period is not stable: it {'falls' if found.last < found.first else 'rises'} "
        f"from {found.first:.4g} to {found.last:.4g}, {abs(found.standard_errors):.0f} standard "
        "errors, and changes smaller than that will be missed: give rows from after it settled"
    ]


def alarms_warning(known: Calibration, alarms: int) -> list[str]:
    """Where the stable period has more alarms of its own detector than chance explains."""
    expected = known.rows / known.arl
    if alarms <= expected + 3 * sqrt(expected) + 2:
        return []
    return [
        f"the stable period itself has {alarms:,} alarms where {expected:.1f} were to be "
        "expected: it may not be stable"
    ]
