"""Series whose changes people have marked: what calibrated detectors find, beside river's.

    python benchmarks/change_points.py

The series are those of van den Burg and Williams 2020 that river's wheel carries, fetched once. A
change counts where most annotators marked it, give or take MARGIN rows. Everything before the first
one is the stable period, on which ours are calibrated to a false alarm in as many rows as it has;
river's run over the whole series, standardised by the same period, with their defaults. The first
alarm after a change and before the next finds it; every other alarm behind the stable period is
"more". Prints the table of docs/drift.md.
"""

from __future__ import annotations

import csv
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.fetch import fetch
from mergekit_cl.drifting.calibrate import FEWEST_ROWS, calibrate
from mergekit_cl.drifting.watch import DetectorName

ROOT = Path(__file__).resolve().parent.parent
MARGIN = 5


@dataclass(frozen=True)
class Source:
    """column: that is watched. first, step: the rows that annotators saw, as the series says."""

    column: str
    step: int = 1
    first: str = ""


SOURCES = {
    "RunLog": Source("Pace"),
    "Occupancy": Source("V3"),
    "Bitcoin": Source("price"),
    "AirlinePassengers": Source("Total Passengers"),
    "Apple": Source("Close", step=3),
    "BrentSpotPrice": Source("DPB", step=10, first="2000"),
    "UKCoalEmploy": Source("Employment"),
}


def values_of(path: Path, source: Source) -> list[float]:
    """The numbers that annotators looked at."""
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    if source.first:
        rows = [row for row in rows if row["day"].rpartition("/")[2] >= source.first]
    return [float(row[source.column]) for row in rows][:: source.step]


def agreed(annotations: dict[str, list[int]]) -> list[int]:
    """The rows (from 1) that more than half of the annotators marked as a new beginning."""
    marks = sorted(mark for marked in annotations.values() for mark in marked)
    found: list[int] = []
    for mark in marks:
        near = {
            who: [m for m in marked if abs(m - mark) <= MARGIN]
            for who, marked in annotations.items()
        }
        voters = [m for ms in near.values() for m in ms[:1]]
        if len(voters) > len(annotations) / 2 and (not found or mark + 1 - found[-1] > 2 * MARGIN):
            found.append(int(median(voters)) + 1)
    return found


def judged(alarms: list[int], changes: list[int], rows: int) -> tuple[list[int], int]:
    """The delays of the changes that were found, and how many alarms found none."""
    delays = []
    for change, following in zip(changes, [*changes[1:], rows + 1], strict=True):
        hits = [row for row in alarms if change - MARGIN <= row < following - MARGIN]
        delays += [hits[0] - change] if hits else []
    late = [row for row in alarms if row >= changes[0] - MARGIN]
    return delays, len(late) - len(delays)


def rivers(river: Path, jobs: list[dict[str, Any]]) -> list[Any]:
    """What river's own code answers, in a process of its own."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/river_alarms.py", river],
        input="".join(json.dumps(job) + "\n" for job in jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_series(river: Path, values: list[float], stable: int) -> Iterator[tuple[str, list[int]]]:
    """(detector, rows of its alarms), rows counted in the whole series."""
    period = np.array(values[:stable])
    for detector in get_args(DetectorName):
        watch = calibrate(period, stable, detector)
        found = [watch.update(value) for value in values[stable:]]
        yield f"`{detector}`", [stable + alarm.row for alarm in found if alarm is not None]
    standardised = ((np.array(values) - period.mean()) / period.std()).tolist()
    names = ("PageHinkley", "ADWIN")
    jobs = [{"detector": name, "options": {}, "values": standardised} for name in names]
    for name, alarms in zip(names, rivers(river, jobs), strict=True):
        yield f"river's {name}", alarms


def main() -> None:
    """Print the table."""
    if sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64":
        sys.exit("error: river's wheel is fetched for Python 3.11 on x86-64")
    river = fetch("river")
    (known,) = rivers(river, [{"datasets": True}])
    print("| series | rows | changes | detector | found | missed | delay, median | more |")
    print("|---|---|---|---|---|---|---|---|")
    for name, source in SOURCES.items():
        values = values_of(Path(known[name]["file"]), source)
        changes = agreed(known[name]["annotations"])
        stable = changes[0] - 1
        head = f"| {name} | {len(values)} | {len(changes)} |"
        if stable < FEWEST_ROWS:
            print(f"{head} none: {stable} rows before the first change | | | | |")
            continue
        for detector, alarms in of_series(river, values, stable):
            delays, more = judged(alarms, changes, len(values))
            delay = f"{median(delays):.0f}" if delays else "-"
            missed = len(changes) - len(delays)
            print(f"{head} {detector} | {len(delays)} | {missed} | {delay} | {more} |")


if __name__ == "__main__":
    main()
