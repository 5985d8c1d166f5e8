"""A line through a series, and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit_cl.decide.trend import trend


def test_the_line_is_that_of_least_squares() -> None:
    values = np.random.default_rng(0).standard_normal(80) + 0.1 * np.arange(80)
    slope, start = np.polyfit(np.arange(80), values, 1)
    found = trend(values)
    assert found.first == pytest.approx(start)
    assert found.last == pytest.approx(start + 79 * slope)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_stable_series_are_seldom_called_a_trend(share: float) -> None:
    generator = np.random.default_rng(1)
    errors = []
    for _ in range(200):
        noise = generator.standard_normal(1000)
        for row in range(1, 1000):
            noise[row] += share * noise[row - 1]
        errors.append(trend(noise).standard_errors)
    assert 0.8 < np.std(errors) < 1.3
    assert np.mean(np.abs(errors) > 4) < 0.01


def test_a_straight_line_is_infinitely_sure() -> None:
    found = trend(np.arange(64) * -1.0)
    assert (found.first, found.last) == (0.0, -63.0)
    assert found.standard_errors < -1e6
