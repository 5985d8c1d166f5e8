"""One stream of numbers, watched row by row against what a stable period was like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal

from mergekit_cl.decide.adwin import Adwin
from mergekit_cl.decide.alarm import Direction
from mergekit_cl.decide.cusum import Cusum
from mergekit_cl.decide.page_hinkley import PageHinkley
from mergekit_cl.drifting.plain import from_plain
from mergekit_cl.errors import FormatError, NonFiniteError

FORMAT = "clmerge.drift/1"
DetectorName = Literal["page-hinkley", "cusum", "adwin"]
Detector = PageHinkley | Cusum | Adwin


@dataclass(frozen=True)
class Calibration:
    """What a stable period said.

    arl: rows between two false alarms that were asked for. rows: of the stable period. mean,
    standard_deviation: of its values, by which others are standardised. delta: in standard
    deviations; None for ADWIN, which has none. threshold: of the detector's statistic.
    autocorrelation_time: rows that count as one independent row. block: rows per block of the
    bootstrap. supported_arl: the longest that a stable period of this length can speak for.
    """

    detector: DetectorName
    arl: int
    rows: int
    mean: float
    standard_deviation: float
    delta: float | None
    threshold: float
    autocorrelation_time: float
    block: int
    supported_arl: int


@dataclass(frozen=True)
class Alarm:
    """A change that was noticed.

    row: counted from 1, of the rows watched. onset: the row at which it is estimated to have begun.
    statistic, threshold: of standardised values.
    """

    row: int
    value: float
    direction: Direction
    statistic: float
    threshold: float
    onset: int


@dataclass
class Watch:
    """A calibrated detector and where it stands; `update` it with one value after another.

    alarms: how many there were. latest: the last of them.
    """

    calibration: Calibration
    detector: Detector
    rows: int = 0
    alarms: int = 0
    latest: Alarm | None = None

    def update(self, value: float) -> Alarm | None:
        """Take one value in; tells of a change. Raises NonFiniteError, and then took nothing in."""
        if not isfinite(value):
            raise NonFiniteError(
                "a value to watch is no finite number", detail=f"row {self.rows + 1}: {value}"
            )
        known = self.calibration
        found = self.detector.update((value - known.mean) / known.standard_deviation)
        self.rows += 1
        if found is None:
            return None
        onset = max(1, self.rows - found.rows + 1)
        self.alarms += 1
        self.latest = Alarm(
            self.rows, value, found.direction, found.statistic, found.threshold, onset
        )
        return self.latest

    def to_json(self) -> dict[str, Any]:
        """The whole state as plain values; `from_json` of it goes on exactly as this would."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_json(content: Mapping[str, Any], where: str = "drift state") -> Watch:
        """The watch that `to_json` described; where: for messages. Raises FormatError."""
        if content.get("format") != FORMAT:
            raise FormatError(
                "not a drift state of a known format",
                detail=f"{where}: format {content.get('format')!r}, known is {FORMAT!r}",
                hint="clmerge drift calibrate STABLE --arl N makes one",
            )
        plain = {key: value for key, value in content.items() if key != "format"}
        calibration = from_plain(
            Calibration, plain.pop("calibration", None), where, ("calibration",)
        )
        kind = detector_type(calibration.detector)
        detector = from_plain(kind, plain.pop("detector", None), where, ("detector",))
        rest = from_plain(_Progress, plain, where)
        return Watch(calibration, detector, rest.rows, rest.alarms, rest.latest)


@dataclass(frozen=True)
class _Progress:
    rows: int
    alarms: int
    latest: Alarm | None


def detector_type(name: DetectorName) -> type[Detector]:
    """The class of a detector."""
    if name == "page-hinkley":
        return PageHinkley
    return Cusum if name == "cusum" else Adwin
