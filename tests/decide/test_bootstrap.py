"""The bootstrap against a loop over single draws, and against what theory says of its bounds."""

from __future__ import annotations

import math
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest

from mergekit_cl.decide import bootstrap
from mergekit_cl.decide.bootstrap import LEAST_ERROR, bounds, studentised
from mergekit_cl.decide.ratio import Array, ratio


def rows(seed: int, count: int) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed)
    weights = draw.integers(5, 200, count).astype(float)
    return weights * draw.normal(0.01, 0.1, count), weights


def by_a_loop(values: Array, weights: Array, draws: int, seed: int) -> list[float]:
    """(r* - r) / se*, every draw written out."""
    generator = np.random.Generator(np.random.PCG64(seed))
    value, error = ratio(values, weights)
    assert error is not None
    found = []
    for _ in range(draws):
        chosen = generator.integers(0, len(values), len(values))
        x, w = values[chosen], weights[chosen]
        mean = math.fsum(x) / math.fsum(w)
        squares = math.fsum((x - mean * w) ** 2)
        own = math.sqrt(len(x) / (len(x) - 1) * squares) / math.fsum(w)
        found.append((mean - value) / max(own, LEAST_ERROR * error))
    return found


@pytest.mark.parametrize("count", [2, 3, 40, 700])
def test_the_draws_are_those_of_a_loop(count: int) -> None:
    values, weights = rows(count, count)
    found = studentised(values, weights, draws=200, seed=3)
    assert found == pytest.approx(by_a_loop(values, weights, 200, 3), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_the_draws_are_the_same_whatever_is_held_at_once(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, weights = rows(1, 90)
    whole = studentised(values, weights, draws=50, seed=0)
    monkeypatch.setattr(bootstrap, "BLOCK", block)
    assert studentised(values, weights, draws=50, seed=0) == pytest.approx(whole, rel=1e-12)


def test_a_million_rows_take_no_memory_for_each_draw() -> None:
    values, weights = rows(2, 1_000_000)
    tracemalloc.start()
    studentised(values, weights, draws=3, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


def test_bounds_of_many_normal_rows_are_those_of_theory() -> None:
    values, weights = rows(4, 3000)
    found = bounds(values, weights, 0.05, draws=10_000, seed=0)
    reach = NormalDist().inv_cdf(0.95) * found.error
    assert found.upper - found.value == pytest.approx(reach, rel=0.05)
    assert found.value - found.lower == pytest.approx(reach, rel=0.05)
    other = bounds(values, weights, 0.05, draws=10_000, seed=1)
    assert other.upper != found.upper
    assert other.upper == pytest.approx(found.upper, abs=0.05 * found.error)


def test_a_rise_on_few_rows_moves_the_upper_bound_further_out_than_the_lower() -> None:
    draw = np.random.default_rng(0)
    weights = np.full(500, 50.0)
    values = weights * np.where(draw.random(500) < 0.02, 1.0, 0.0)
    found = bounds(values, weights, 0.05, draws=10_000, seed=0)
    assert found.upper - found.value > 1.3 * (found.value - found.lower)


def test_bounds_beyond_what_the_draws_resolve_are_no_nearer_than_the_normal_ones() -> None:
    values, weights = rows(5, 600)
    found = bounds(values, weights, 1e-6, draws=1000, seed=0)
    reach = NormalDist().inv_cdf(1 - 1e-6) * found.error
    assert found.upper >= found.value + reach
    assert found.lower <= found.value - reach


def test_rows_that_all_rise_alike_have_no_width() -> None:
    weights = np.arange(1.0, 9.0)
    found = bounds(0.25 * weights, weights, 0.05, draws=100, seed=0)
    assert (found.value, found.error, found.lower, found.upper) == (0.25, 0.0, 0.25, 0.25)


def test_one_row_that_differs_has_finite_bounds() -> None:
    weights = np.full(500, 10.0)
    values = np.zeros(500)
    values[7] = 5.0
    found = bounds(values, weights, 0.05, draws=2000, seed=0)
    assert 0 < found.upper < 20 * found.error


def test_one_row_alone_has_no_bounds() -> None:
    with pytest.raises(ValueError, match="two rows"):
        bounds(np.ones(1), np.ones(1), 0.05, draws=10, seed=0)
