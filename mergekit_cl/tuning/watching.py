"""The loss of each step's new rows, watched for drift before they are learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mergekit_cl.decide.adwin import Adwin
from mergekit_cl.drifting.calibrate import calibrate
from mergekit_cl.drifting.statefile import read_state
from mergekit_cl.drifting.watch import Alarm, Watch
from mergekit_cl.tuning.schema import Drift


class Stream:
    """A detector that calibrates itself on the first steps, unless it was given one that is.

    pending: losses of the stable period so far; watch: the detector, once that is over.
    """

    def __init__(self, settings: Drift, watch: Watch | None = None) -> None:
        self._settings = settings
        self.pending: list[float] = []
        self.watch = watch

    def see(self, loss: float) -> Alarm | None:
        """Take in one step's loss, in nats per token; tells of a change."""
        if self.watch is not None:
            return self.watch.update(loss)
        self.pending.append(loss)
        if len(self.pending) == self._settings.calibration:
            arl = self._settings.mean_time_between_false_alarms
            self.watch = calibrate(self.pending, arl, self._settings.detector)
        return None

    @property
    def statistic(self) -> dict[str, Any]:
        """What the log says after a step: the detector's statistic and its threshold.

        ADWIN compares the two at every eighth row alone, and has none after an alarm for a while.
        """
        if self.watch is None:
            return {}
        found = self.watch.detector
        value = (
            found.statistic() if isinstance(found, Adwin) else max(found.sums.up, found.sums.down)
        )
        if value is None:
            return {}
        return {"drift_statistic": value, "drift_threshold": self.watch.calibration.threshold}

    def to_json(self) -> dict[str, Any]:
        """As values for JSON."""
        watch = None if self.watch is None else self.watch.to_json()
        return {"pending": self.pending, "watch": watch}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on where `to_json` was taken."""
        self.pending = list(values["pending"])
        watch = values["watch"]
        self.watch = None if watch is None else Watch.from_json(watch, "the state of the run")


def stream_of(settings: Drift) -> Stream:
    """The stream of a new run; raises InputError or FormatError for a state that is none."""
    if settings.state is None:
        return Stream(settings)
    return Stream(settings, read_state(Path(settings.state)).watch)


def alarm_to_json(alarm: Alarm) -> dict[str, Any]:
    """An alarm as the log holds it."""
    return asdict(alarm)
