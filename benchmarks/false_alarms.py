"""Do calibrated detectors raise false alarms as rarely as asked? Streams in which nothing changes.

    python benchmarks/false_alarms.py [--calibrations 40] [--detector NAME] [--short]

For each kind of stream: so many stable periods are drawn and calibrated on; each watch then reads
ten times as many rows as there shall be between two false alarms, from a stream of its own, and is
left running after an alarm. "rows per alarm" is all rows over all alarms. "of most" is the range of
single calibrations without the lowest and the highest tenth: what one user gets. Prints the table
of docs/drift.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mergekit_cl.drifting.calibrate import calibrate
from mergekit_cl.drifting.watch import DetectorName

WARM_UP = 300
LENGTH = 10
"""Times the asked rows between alarms that each watch reads."""
SETTINGS = ((500, 500), (500, 2500), (2000, 10_000))
"""(--arl, rows of the stable period)."""
Streams = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Streams]


def autoregressive(
    generator: np.random.Generator, streams: int, rows: int, share: float
) -> Streams:
    """(streams, rows): each value `share` times the one before and normal noise; deviation 1."""
    noise = generator.standard_normal((rows + WARM_UP, streams)) * np.sqrt(1 - share**2)
    for row in range(1, len(noise)):
        noise[row] += share * noise[row - 1]
    return np.ascontiguousarray(noise[WARM_UP:].T)


STREAMS: dict[str, Draw] = {
    "white": lambda generator, streams, rows: generator.standard_normal((streams, rows)),
    "AR(1), 0.5": lambda generator, streams, rows: autoregressive(generator, streams, rows, 0.5),
    "AR(1), 0.9": lambda generator, streams, rows: autoregressive(generator, streams, rows, 0.9),
    "skewed, 0.5": lambda generator, streams, rows: np.exp(
        0.5 * autoregressive(generator, streams, rows, 0.5)
    ),
}


@dataclass(frozen=True)
class Measured:
    """alarms: of each calibration, in `rows` rows. supported: the smallest of their claims."""

    alarms: list[int]
    rows: int
    threshold: float
    supported: int


def measure(
    detector: DetectorName, draw: Draw, arl: int, stable: int, calibrations: int, seed: int = 0
) -> Measured:
    """How many alarms each of so many calibrations raises on a stream without a change."""
    generator = np.random.default_rng((seed, arl, stable))
    rows = LENGTH * arl
    periods, streams = draw(generator, calibrations, stable), draw(generator, calibrations, rows)
    alarms, thresholds, supported = [], [], []
    for period, stream in zip(periods, streams, strict=True):
        watch = calibrate(period, arl, detector)
        thresholds.append(watch.calibration.threshold)
        supported.append(watch.calibration.supported_arl)
        for value in stream.tolist():
            watch.update(value)
        alarms.append(watch.alarms)
    return Measured(alarms, rows, float(np.mean(thresholds)), min(supported))


def line(detector: str, name: str, arl: int, stable: int, found: Measured) -> str:
    """A row of the table."""
    total = sum(found.alarms)
    each = found.rows / np.maximum(np.quantile(found.alarms, [0.9, 0.1]), 0.5)
    short = " (told: too short)" if found.supported < arl else ""
    return (
        f"| `{detector}` | {name} | {stable:,}{short} | {arl:,} | "
        f"{found.rows * len(found.alarms) / max(total, 1):,.0f} | "
        f"{each[0]:,.0f} to {each[1]:,.0f} | {found.threshold:.3g} |"
    )


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibrations", type=int, default=40)
    parser.add_argument("--detector", choices=get_args(DetectorName))
    parser.add_argument("--short", action="store_true", help="one setting")
    given = parser.parse_args(arguments)
    detectors = [given.detector] if given.detector else get_args(DetectorName)
    print("| detector | stream | stable rows | asked | rows per alarm | of most | threshold |")
    print("|---|---|---|---|---|---|---|")
    for detector in detectors:
        for name, draw in STREAMS.items():
            for arl, stable in SETTINGS[1:2] if given.short else SETTINGS:
                found = measure(detector, draw, arl, stable, given.calibrations)
                print(line(detector, name, arl, stable, found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
