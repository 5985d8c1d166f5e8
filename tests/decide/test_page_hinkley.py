"""Page-Hinkley against its formulas, written out with the growing sums and the whole stream."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_cl.decide.page_hinkley import MINIMUM, PageHinkley, page_hinkley_path
from mergekit_cl.decide.two_sided import TwoSided


def by_the_formulas(
    stream: list[float], delta: float, threshold: float
) -> list[tuple[int, str, float]]:
    """(row, direction, statistic) of each alarm; everything starts over behind one."""
    alarms, begin = [], 0
    for end in range(1, len(stream) + 1):
        x = np.array(stream[begin:end])
        mean = np.cumsum(x) / np.arange(1, len(x) + 1)
        up, down = np.cumsum(x - mean - delta), np.cumsum(x - mean + delta)
        rise = up[-1] - min(0.0, up.min())
        fall = max(0.0, down.max()) - down[-1]
        if len(x) >= MINIMUM and max(rise, fall) > threshold:
            alarms.append((end, "up" if rise >= fall else "down", max(rise, fall)))
            begin = end
    return alarms


@pytest.mark.parametrize("seed", range(6))
def test_alarms_are_those_of_the_formulas(seed: int) -> None:
    generator = np.random.default_rng(seed)
    level = np.repeat(generator.uniform(-1.5, 1.5, size=4), 100)
    stream = (level + generator.standard_normal(400)).tolist()
    detector, found = PageHinkley(0.25, 8.0), []
    for row, value in enumerate(stream, start=1):
        alarm = detector.update(value)
        if alarm is not None:
            found.append((row, alarm.direction, alarm.statistic))
    wanted = by_the_formulas(stream, 0.25, 8.0)
    assert len(wanted) >= 2
    assert [one[:2] for one in found] == [one[:2] for one in wanted]
    np.testing.assert_allclose([one[2] for one in found], [one[2] for one in wanted], rtol=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=80), st.floats(0.05, 1), st.integers(0, 100))
def test_the_path_is_what_updates_see(stream: list[float], delta: float, earlier: int) -> None:
    detector = PageHinkley(delta, float("inf"), rows=earlier)
    seen = []
    for value in stream:
        detector.update(value)
        told = detector.rows >= MINIMUM
        seen.append(max(detector.sums.up, detector.sums.down) if told else 0.0)
    path = page_hinkley_path(np.array([stream]), delta, earlier)[0]
    np.testing.assert_allclose(path, seen, atol=1e-9)


def test_without_a_delta_a_stable_stream_alarms_with_certainty() -> None:
    # The reason why there is one: the same streams, the same threshold.
    streams = np.random.default_rng(3).standard_normal((50, 5000))
    raised = {
        delta: int((page_hinkley_path(streams, delta, 5000).max(axis=1) > 20).sum())
        for delta in (0.0, 0.5)
    }
    assert raised == {0.0: 50, 0.5: 0}


def test_after_an_alarm_nothing_is_left_of_what_was_before() -> None:
    detector = PageHinkley(0.5, 3.0, rows=100)
    while detector.update(2.0) is None:
        pass
    assert asdict(detector) == asdict(PageHinkley(0.5, 3.0))
    assert detector.sums == TwoSided()
