"""The buckets of a window: sizes by the paper, sums and variance of the very rows they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_cl.decide.histogram import Histogram


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300), st.integers(2, 6))
def test_buckets_hold_successive_rows(values: list[float], per_size: int) -> None:
    window = Histogram(per_size)
    for value in values:
        window.add(value)
    counts = window.counts
    assert sum(counts) == len(values)
    assert counts == sorted(counts, reverse=True)
    for size in set(counts):
        assert size & (size - 1) == 0
        # Of every size but the largest there are at least per_size - 1, and never more.
        assert counts.count(size) <= per_size
        assert counts.count(size) >= per_size - 1 or size == counts[0]
    at = 0
    for count, total, square in zip(counts, window.sums, window.squares, strict=True):
        rows = np.array(values[at : at + count])
        at += count
        assert np.isclose(total, rows.sum(), atol=1e-6)
        assert np.isclose(square, ((rows - rows.mean()) ** 2).sum(), rtol=1e-6, atol=1e-5)
    assert np.isclose(window.variance(), np.var(values), rtol=1e-6, atol=1e-6)


def test_a_large_offset_does_not_cost_the_variance_its_digits() -> None:
    values = 1e8 + np.random.default_rng(0).standard_normal(5000)
    window = Histogram()
    for value in values.tolist():
        window.add(value)
    assert abs(window.variance() / np.var(values) - 1) < 1e-6


def test_memory_grows_with_the_logarithm_of_the_rows() -> None:
    window = Histogram()
    for _ in range(100_000):
        window.add(0.0)
    assert len(window.counts) <= 5 * 16


@pytest.mark.parametrize(
    "lists", [([1], [], []), ([0], [1.0], [0.0]), ([1], [1.0], [-1.0]), ([2, 1], [1.0, 2.0], [0.0])]
)
def test_what_is_no_histogram_is_refused(lists: tuple[list[int], list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match=r"lists of different|bucket"):
        Histogram(5, *lists)
