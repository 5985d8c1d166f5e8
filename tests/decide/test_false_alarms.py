"""Thresholds and mean times against a plain search and against a closed form."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_cl.decide.false_alarms import mean_time, records, threshold_for

PATHS = st.lists(
    st.lists(st.integers(0, 6).map(float), min_size=8, max_size=8), min_size=1, max_size=6
)


@given(PATHS, st.integers(0, 7), st.integers(1, 5))
def test_the_first_alarm_of_every_threshold_is_in_the_records(
    paths: list[list[float]], threshold: int, every: int
) -> None:
    for path, found in zip(paths, records(np.array(paths), every), strict=True):
        above = [look for look, value in enumerate(path, start=1) if value > threshold]
        assert found.first_above(threshold) == (above[0] * every if above else None)


def test_the_mean_time_counts_streams_that_were_cut_off() -> None:
    streams = records(np.array([[0.0, 5, 0, 0], [0, 0, 0, 5], [0, 0, 0, 0]]))
    assert mean_time(streams, 4, 1.0) == (2 + 4 + 4) / 2
    assert mean_time(streams, 4, 9.0) == float("inf")


@pytest.mark.parametrize("arl", [50, 400])
def test_the_threshold_of_independent_rows_is_their_quantile(arl: int) -> None:
    # Each row alone exceeds h with probability exp(-h): a mean time of exp(h).
    heights = np.random.default_rng(0).exponential(size=(6000, arl))
    found = threshold_for(records(heights), arl, arl)
    assert found == pytest.approx(log(arl), abs=0.06)


@given(PATHS, st.integers(1, 40))
def test_no_smaller_threshold_is_rare_enough(paths: list[list[float]], arl: int) -> None:
    streams = records(np.array(paths))
    found = threshold_for(streams, 8, arl)
    assert mean_time(streams, 8, found) >= arl or found == max(max(path) for path in paths)
    heights = {float(value) for stream in streams for value in stream.values}
    for smaller in heights:
        assert smaller >= found or mean_time(streams, 8, smaller) < arl
