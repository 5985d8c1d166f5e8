"""Weighted means, sums and differences against exact fractions and float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from exactly import fractions, nearest, spacing
from hypothesis import given, settings
from hypothesis import strategies as st
from making import same_bits

from mergekit_cl.merge.kernel import SCRATCH_BUFFERS
from mergekit_cl.merge.linear import normalized, weighted_deltas, weighted_mean, weighted_sum
from mergekit_cl.merge.rounding import round_into

SIXTEEN = [torch.bfloat16, torch.float16]
DTYPES = [*SIXTEEN, torch.float32, torch.float64]


def run(kernel: Any, inputs: Sequence[torch.Tensor], out: torch.dtype, **options: Any) -> Any:
    """One block as the stream does it: widen, merge, round once."""
    wide = [x.to(torch.float64 if x.dtype == torch.float64 else torch.float32) for x in inputs]
    scratch = [torch.full_like(wide[0], math.nan) for _ in range(SCRATCH_BUFFERS)]
    before = [x.clone() for x in wide]
    exact = kernel(wide, scratch, **options).exact
    assert all(same_bits(x, y) for x, y in zip(wide, before, strict=True)), "operands changed"
    result = torch.empty(inputs[0].shape, dtype=out)
    round_into(result, exact)
    return result


def some_weights(count: int, seed: int = 0) -> tuple[float, ...]:
    # From a continuous distribution: a "nice" weight such as 1/2 puts many exact results on ties
    # of the bf16 grid, where the last bit of the arithmetic decides and counting is meaningless.
    generator = torch.Generator().manual_seed(seed + count)
    return normalized((torch.rand(count, generator=generator).double() + 0.1).tolist())


def related(count: int, size: int, dtype: torch.dtype, spread: float) -> list[torch.Tensor]:
    """Fine-tunes of one base: 0.02 wide, each moved by `spread` of that; 1 makes them strangers."""
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(size, generator=generator, dtype=torch.float64) * 0.02

    def one() -> torch.Tensor:
        own = torch.randn(size, generator=generator, dtype=torch.float64) * 0.02
        return (own if spread == 1 else base + spread * own).to(dtype)

    return [one() for _ in range(count)]


def as_floats(values: Sequence[Fraction], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([nearest(v, dtype) for v in values], dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", range(2, 9))
def test_the_mean_is_within_a_unit_in_the_last_place_of_exact_fractions(
    count: int, dtype: torch.dtype
) -> None:
    inputs = related(count, 200, dtype, 1)
    weights = some_weights(count)
    result = fractions(run(weighted_mean, inputs, dtype, weights=weights))
    columns = zip(*(fractions(x) for x in inputs), strict=True)
    # float32 and float64 results are rounded at every step, 16-bit ones only at the end.
    units = 1 if dtype in SIXTEEN else count
    for found, column in zip(result, columns, strict=True):
        exact = sum(Fraction(w) * x for w, x in zip(weights, column, strict=True))
        largest = max(abs(x) for x in column)
        assert abs(found - exact) <= units * spacing(largest, dtype)


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20),
    st.floats(0, 1),
)
def test_the_mean_of_two_lies_between_them(
    dtype: torch.dtype, pairs: list[tuple[float, float]], t: float
) -> None:
    a, b = (torch.tensor(column).to(dtype) for column in zip(*pairs, strict=True))
    result = run(weighted_mean, [a, b], dtype, weights=(1 - t, t))
    assert bool((result >= torch.minimum(a, b)).all())
    assert bool((result <= torch.maximum(a, b)).all())


def finite_bits(dtype: torch.dtype, seed: int, size: int = 4096) -> torch.Tensor:
    """Random bit patterns that are numbers: subnormals, both zeros, the largest values."""
    generator = torch.Generator().manual_seed(seed)
    item = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 256, (size * item,), generator=generator, dtype=torch.uint8)
    values = raw.view(dtype)
    values[:8] = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 6e-8, -6e-8, 1.0, -1.0]).to(dtype)
    return torch.where(values.isfinite(), values, torch.zeros_like(values))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_equal_inputs_keep_their_bits(count: int, dtype: torch.dtype) -> None:
    values = finite_bits(dtype, count)
    result = run(weighted_mean, [values] * count, dtype, weights=some_weights(count))
    assert same_bits(result, values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_inputs_keep_their_bits_under_weights_that_extrapolate(dtype: torch.dtype) -> None:
    values = finite_bits(dtype, 3)
    assert same_bits(run(weighted_mean, [values] * 2, dtype, weights=(1.5, -0.5)), values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", [0.1, 0.3, 0.49999999])
def test_swapping_two_inputs_with_their_weights_changes_no_bit(
    dtype: torch.dtype, weight: float
) -> None:
    a, b = related(2, 5000, dtype, 1)
    weights = normalized((weight, 1 - weight))
    one = run(weighted_mean, [a, b], dtype, weights=weights)
    other = run(weighted_mean, [b, a], dtype, weights=weights[::-1])
    assert same_bits(one, other)


def test_of_two_equal_weights_the_second_input_is_the_anchor() -> None:
    # t < 1/2 ? a + t(b - a) : b - (1 - t)(b - a), in separate float32 operations.
    a, b = related(2, 5000, torch.float32, 1)
    result = run(weighted_mean, [a, b], torch.float32, weights=(0.5, 0.5))
    assert same_bits(result, b - (b - a) * 0.5)
    assert not same_bits(result, a + (b - a) * 0.5)  # the other form rounds differently


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_order_of_many_inputs_changes_rounding_alone(dtype: torch.dtype) -> None:
    inputs, weights = related(5, 5000, dtype, 1), some_weights(5)
    one = run(weighted_mean, inputs, dtype, weights=weights).double()
    other = run(weighted_mean, inputs[::-1], dtype, weights=weights[::-1]).double()
    largest = torch.stack([x.abs() for x in inputs]).amax(0).double()
    assert bool(((one - other).abs() <= 8 * torch.finfo(dtype).eps * largest).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_input_of_weight_zero_changes_nothing(dtype: torch.dtype) -> None:
    a, b, c = related(3, 5000, dtype, 1)
    without = run(weighted_mean, [a, c], dtype, weights=(0.3, 0.7))
    assert same_bits(run(weighted_mean, [a, b, c], dtype, weights=(0.3, 0.0, 0.7)), without)


def test_weight_one_is_that_input() -> None:
    a, b = related(2, 5000, torch.float32, 1)
    assert same_bits(run(weighted_mean, [a, b], torch.float32, weights=(0.0, 1.0)), b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_sum_takes_its_weights_as_given(count: int, dtype: torch.dtype) -> None:
    inputs = related(count, 200, dtype, 1)
    weights = [w * 3 * (-1) ** k for k, w in enumerate(some_weights(count))]
    result = run(weighted_sum, inputs, dtype, weights=weights)
    columns = zip(*(fractions(x) for x in inputs), strict=True)
    for found, column in zip(fractions(result), columns, strict=True):
        terms = [Fraction(w) * x for w, x in zip(weights, column, strict=True)]
        unit = spacing(max(map(abs, terms)), dtype)
        assert abs(found - sum(terms)) <= (count + 1) * unit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_differences_are_added_to_the_base_with_weights_as_given(
    count: int, dtype: torch.dtype
) -> None:
    *inputs, base = related(count + 1, 200, dtype, 0.05)
    weights = [w * 2 for w in some_weights(count)]
    result = run(weighted_deltas, [*inputs, base], dtype, weights=weights)
    columns = zip(*(fractions(x) for x in [*inputs, base]), strict=True)
    units = 1 if dtype in SIXTEEN else count + 1
    for found, (*column, start) in zip(fractions(result), columns, strict=True):
        moved = sum(Fraction(w) * (x - start) for w, x in zip(weights, column, strict=True))
        assert abs(found - (start + moved)) <= units * spacing(abs(start) + abs(moved), dtype)


def test_a_difference_is_not_rounded_before_it_is_added() -> None:
    # 1/3 of a step: the rounded delta 0.334 * 2^-8 and the exact one give other 16-bit results.
    base = torch.tensor([1.0]).bfloat16()
    tuned = [torch.tensor([1 + k * 2.0**-7]).bfloat16() for k in (1, 3)]
    weights = (1 / 3, 0.0556)
    exact = 1 + sum(w * (x.double() - 1) for w, x in zip(weights, tuned, strict=True))
    result = run(weighted_deltas, [*tuned, base], torch.bfloat16, weights=weights)
    assert result.double().item() == nearest(Fraction(exact.item()), torch.bfloat16)
    early = [w * (x.double() - 1) for w, x in zip(weights, tuned, strict=True)]
    assert sum(d.bfloat16() for d in early).double().item() + 1 != exact.item()


def test_a_float32_merge_into_bfloat16_is_rounded_once() -> None:
    inputs = related(3, 2000, torch.float32, 1)
    weights = some_weights(3)
    result = run(weighted_mean, inputs, torch.bfloat16, weights=weights)
    exact = sum(w * x.double() for w, x in zip(weights, inputs, strict=True))
    expected = as_floats(fractions(exact), torch.bfloat16)
    share = float((result.double() != expected).double().mean())
    assert share <= 1e-3


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(lambda w: sum(w) > 1e-3))
def test_weights_are_divided_by_their_sum(weights: list[float]) -> None:
    found = normalized(weights)
    total = sum(map(Fraction, weights))
    for one, weight in zip(found, weights, strict=True):
        assert math.isclose(one, Fraction(weight) / total, rel_tol=1e-15, abs_tol=1e-320)


@pytest.mark.parametrize(
    "weights", [(0.0, 0.0), (1.0, -1.0), (math.inf, 1.0), (math.nan, 1.0), (1e308, 1e308)]
)
def test_weights_without_a_finite_sum_other_than_zero_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match="weights sum"):
        normalized(weights)
