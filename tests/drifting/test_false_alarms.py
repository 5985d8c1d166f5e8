"""Calibrated detectors raise false alarms as rarely as asked, within a factor of two.

benchmarks/false_alarms.py is the long form: more streams, settings and calibrations.
"""

from __future__ import annotations

import pytest

from benchmarks.false_alarms import STREAMS, measure
from mergekit_cl.drifting.watch import DetectorName

ARL = 200
STABLE = 1000
CALIBRATIONS = 20


@pytest.mark.parametrize("stream", ["white", "AR(1), 0.5", "AR(1), 0.9"])
@pytest.mark.parametrize("detector", ["page-hinkley", "cusum", "adwin"])
def test_false_alarms_come_as_rarely_as_asked(detector: DetectorName, stream: str) -> None:
    found = measure(detector, STREAMS[stream], ARL, STABLE, CALIBRATIONS)
    rows = found.rows * CALIBRATIONS / sum(found.alarms)
    assert ARL / 2 < rows < ARL * 2
    assert found.supported >= ARL


@pytest.mark.parametrize("detector", ["page-hinkley", "cusum"])
def test_a_threshold_for_independent_rows_would_alarm_far_too_often(
    detector: DetectorName,
) -> None:
    # Why a block bootstrap: the threshold that white noise of the same deviation gets.
    white = measure(detector, STREAMS["white"], ARL, STABLE, 5).threshold
    correlated = measure(detector, STREAMS["AR(1), 0.9"], ARL, STABLE, 5).threshold
    assert correlated > 4 * white
