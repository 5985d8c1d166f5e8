"""Page's sums against their definition: U - min U and max D - D of sums that only grow."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergekit_cl.decide.two_sided import TwoSided, statistic_path

STREAMS = st.lists(st.floats(-10, 10), min_size=1, max_size=60)
DELTAS = st.floats(0.01, 2)


def by_definition(deviations: list[float], delta: float) -> tuple[NDArray, NDArray]:  # type: ignore[type-arg]
    rising = np.concatenate([[0.0], np.cumsum(np.array(deviations) - delta)])
    falling = np.concatenate([[0.0], np.cumsum(np.array(deviations) + delta)])
    up = rising - np.minimum.accumulate(rising)
    down = np.maximum.accumulate(falling) - falling
    return up[1:], down[1:]


@given(STREAMS, DELTAS)
def test_the_sums_are_those_of_the_definition(deviations: list[float], delta: float) -> None:
    up, down = by_definition(deviations, delta)
    sums, found = TwoSided(), []
    for deviation in deviations:
        sums.add(deviation, delta)
        found.append((sums.up, sums.down))
    np.testing.assert_allclose(found, np.stack([up, down], axis=1), atol=1e-10)


@given(STREAMS, DELTAS)
def test_the_path_is_the_larger_of_both(deviations: list[float], delta: float) -> None:
    path = statistic_path(np.array([deviations, deviations[::-1]]), delta)
    for row, values in zip(path, (deviations, deviations[::-1]), strict=True):
        np.testing.assert_allclose(row, np.maximum(*by_definition(values, delta)), atol=1e-10)


def test_the_rows_since_the_sum_was_zero_are_counted() -> None:
    sums = TwoSided()
    for deviation in (5.0, -9.0, 1.0, 1.0, 1.0):
        sums.add(deviation, 0.5)
    assert (sums.up, sums.up_rows) == (1.5, 3)
    assert sums.down_rows == 4
    found = sums.crossing(1.0)
    assert found is not None
    assert (found.direction, found.rows) == ("down", 4)


def test_a_sum_at_the_threshold_is_no_alarm() -> None:
    sums = TwoSided(up=2.0, up_rows=1)
    assert sums.crossing(2.0) is None
    found = sums.crossing(1.9999)
    assert found is not None
    assert (found.direction, found.statistic, found.threshold) == ("up", 2.0, 1.9999)
