"""A watch goes on after a restart exactly as it would have without one."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from mergekit_cl.drifting.calibrate import calibrate
from mergekit_cl.drifting.watch import Alarm, DetectorName, Watch
from mergekit_cl.errors import FormatError, NonFiniteError

DETECTORS: tuple[DetectorName, ...] = ("page-hinkley", "cusum", "adwin")
GENERATOR = np.random.default_rng(5)
STABLE = 2.7 + 0.2 * GENERATOR.standard_normal(600)
SHIFTED = 2.7 + 0.2 * GENERATOR.standard_normal(240) + 0.3 * (np.arange(240) >= 150)


def restored(watch: Watch) -> Watch:
    return Watch.from_json(json.loads(json.dumps(watch.to_json())))


@pytest.fixture(scope="module", params=DETECTORS)
def fresh(request: pytest.FixtureRequest) -> Watch:
    return calibrate(STABLE, 300, request.param)


def test_a_watch_that_is_stored_after_every_row_tells_the_same(fresh: Watch) -> None:
    whole, stored = deepcopy(fresh), deepcopy(fresh)
    alarms = []
    for value in SHIFTED.tolist():
        found = whole.update(value)
        assert stored.update(value) == found
        stored = restored(stored)
        assert stored == whole
        alarms += [found] if found else []
    assert alarms
    assert whole.alarms == len(alarms)
    assert whole.latest == alarms[-1]


def test_a_shift_is_told_with_its_direction_and_about_where_it_began(fresh: Watch) -> None:
    for sign in (1, -1):
        watch = deepcopy(fresh)
        mean = watch.calibration.mean
        found: list[Alarm] = []
        for value in mean + sign * (SHIFTED - mean):
            alarm = watch.update(float(value))
            found += [alarm] if alarm and alarm.row > 150 else []
        first = found[0]
        assert first.direction == ("up" if sign > 0 else "down")
        assert first.row < 190
        assert abs(first.onset - 151) <= 15
        assert first.statistic > first.threshold == watch.calibration.threshold


def test_a_level_that_is_off_from_the_first_row_is_told(fresh: Watch) -> None:
    watch = deepcopy(fresh)
    alarms = [watch.update(float(value) + 0.3) for value in SHIFTED[:100]]
    assert any(alarms)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_finite_number_is_refused_and_changes_nothing(
    fresh: Watch, value: float
) -> None:
    watch = deepcopy(fresh)
    with pytest.raises(NonFiniteError, match="no finite number"):
        watch.update(value)
    assert watch == fresh


def test_a_period_that_is_constant_but_for_a_few_rows_can_be_calibrated_on() -> None:
    # Most of what is resampled from it does not vary at all.
    values = np.zeros(400)
    values[[120, 121, 122, 300]] = 5.0
    for name in DETECTORS:
        watch = calibrate(values, 200, name)
        assert np.isfinite(watch.calibration.threshold)
        assert all(watch.update(0.0) is None for _ in range(100))


def damaged(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format", "clmerge.drift/2", "clmerge.drift/2"),
        ("format", ..., "format None"),
        ("detector", ..., "detector = "),
        ("detector", [], "detector = "),
        ("calibration", 3, "calibration = 3"),
        ("calibration.detector", "kswin", "calibration.detector"),
        ("calibration.mean", "2.7", "calibration.mean"),
        ("calibration.mean", float("nan"), "calibration.mean"),
        ("calibration.rows", 600.0, "calibration.rows"),
        ("calibration.rows", True, "calibration.rows"),
        ("detector.threshold", ..., "detector.threshold is not there"),
        ("rows", ..., "rows is not there"),
        ("surprise", 1, "surprise is unknown"),
        ("latest", {"row": 1}, "latest.value is not there"),
    ],
)
def test_a_damaged_state_is_refused_by_key(fresh: Watch, path: str, value: Any, says: str) -> None:
    content = damaged(json.loads(json.dumps(fresh.to_json())), path, value)
    with pytest.raises(FormatError) as caught:
        Watch.from_json(content, "drift.json")
    assert caught.value.detail is not None
    assert caught.value.detail.startswith("drift.json: ")
    assert says in caught.value.detail


def test_the_state_of_another_detector_is_refused() -> None:
    stored = {name: calibrate(STABLE, 300, name).to_json() for name in DETECTORS}
    for name in DETECTORS:
        for other in DETECTORS:
            content = {**stored[name], "detector": stored[other]["detector"]}
            if name == other:
                assert Watch.from_json(content).to_json() == stored[name]
                continue
            with pytest.raises(FormatError, match="not what was stored"):
                Watch.from_json(content)


def test_a_window_whose_lists_do_not_fit_is_refused() -> None:
    content = json.loads(json.dumps(calibrate(STABLE, 300, "adwin").to_json()))
    content["detector"]["window"]["sums"].pop()
    with pytest.raises(FormatError) as caught:
        Watch.from_json(content)
    assert "detector.window: lists of different lengths" in str(caught.value.detail)
