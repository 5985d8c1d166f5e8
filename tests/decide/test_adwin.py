"""ADWIN against the definition of its cut, cut by cut, in exact form."""

from __future__ import annotations

from math import exp, log, sqrt

import numpy as np
import pytest

from mergekit_cl.decide.adwin import EVERY, Adwin, adwin_path, cut_statistic
from mergekit_cl.decide.histogram import Histogram


def epsilon(older: int, newer: int, variance: float, confidence: float) -> float:
    """The difference of means that the paper calls a change."""
    spread = 1 / older + 1 / newer
    logarithm = log(2 * log(older + newer) / confidence)
    return sqrt(2 * spread * variance * logarithm) + 2 / 3 * spread * logarithm


def first_cut(stream: list[float], threshold: float) -> int | None:
    """The row at which the definition first holds for some cut between two buckets."""
    window = Histogram()
    for row, value in enumerate(stream, start=1):
        window.add(value)
        if row % EVERY:
            continue
        seen = np.array(stream[:row])
        for cut in np.cumsum(window.counts)[:-1].tolist():
            if cut < 5 or row - cut < 5:
                continue
            apart = abs(seen[:cut].mean() - seen[cut:].mean())
            if apart > epsilon(cut, row - cut, float(seen.var()), 2 * exp(-threshold)):
                return row
    return None


@pytest.mark.parametrize("seed", range(8))
def test_the_first_alarm_is_where_the_definition_holds_first(seed: int) -> None:
    generator = np.random.default_rng(seed)
    stream = (0.7 * generator.standard_normal(400) + (np.arange(400) >= 250)).tolist()
    for threshold in (1.5, 4.0, 7.0):
        detector = Adwin(threshold)
        found = next((row for row, x in enumerate(stream, 1) if detector.update(x)), None)
        assert found == first_cut(stream, threshold)


@pytest.mark.parametrize(("older", "newer", "variance"), [(5, 5, 1.0), (900, 32, 0.2), (64, 7, 4)])
def test_the_statistic_solves_the_cut_for_its_confidence(
    older: int, newer: int, variance: float
) -> None:
    for confidence in (0.9, 0.1, 0.002, 1e-8):
        apart = epsilon(older, newer, variance, confidence)
        found = cut_statistic(np.array([apart]), np.array([older]), older + newer, variance)
        assert found[0] == pytest.approx(log(2 / confidence), abs=1e-9)


def test_a_constant_window_has_no_cut() -> None:
    detector = Adwin(-1.0)
    assert all(detector.update(3.0) is None for _ in range(200))
    found = cut_statistic(np.zeros(1), np.array([8]), 16, 0.0)
    assert found[0] == pytest.approx(-log(log(16)))


@pytest.mark.parametrize("earlier", [0, 100])
def test_the_path_is_what_looks_see(earlier: int) -> None:
    streams = np.random.default_rng(4).standard_normal((3, 260))
    path = adwin_path(streams, earlier, EVERY)
    assert path.shape == (3, (260 - earlier) // EVERY)
    for stream, seen in zip(streams, path, strict=True):
        for look, statistic in enumerate(seen):
            row = earlier + (look + 1) * EVERY
            if statistic == -np.inf:
                assert row < 10
                continue
            # An alarm just below the statistic and none just above it.
            for threshold, raised in ((statistic - 1e-6, True), (statistic + 1e-6, False)):
                detector = Adwin(threshold)
                for value in stream[:row].tolist():
                    detector.window.add(value)
                assert (detector._look() is not None) == raised


def test_a_change_is_told_once_and_dated() -> None:
    generator = np.random.default_rng(2)
    stream = generator.standard_normal(900) + 1.5 * (np.arange(900) >= 600)
    detector, found = Adwin(6.0), []
    for row, value in enumerate(stream.tolist(), start=1):
        alarm = detector.update(value)
        if alarm is not None:
            found.append((row, alarm.direction, row - alarm.rows + 1))
    ((row, direction, onset),) = found
    assert direction == "up"
    assert 600 < row < 640
    assert abs(onset - 601) <= 10


def test_what_a_detector_tells_of_its_window_is_what_it_compares_at_its_looks() -> None:
    generator = np.random.default_rng(3)
    stream = generator.standard_normal(400) + 2.0 * (np.arange(400) >= 300)
    detector, silent = Adwin(8.0), Adwin(1e9)
    assert detector.statistic() is None
    for x in stream.tolist():
        found = detector.update(x)
        silent.update(x)
        if found is not None:
            assert found.statistic == silent.statistic()
            assert detector.statistic() is None
            break
        if detector.rows % EVERY == 0 and detector.statistic() is not None:
            assert detector.statistic() <= 8.0
    assert found is not None
