"""Compiled widening and rounding give torch's and merge/rounding.py's bits, for any block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import same_bits

from mergekit_cl.checkpoint.arrays import as_array
from mergekit_cl.merge import compiled_wide, rounding

NARROW = [torch.bfloat16, torch.float16, torch.float32]
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def widen_into(stored: torch.Tensor, residual: torch.Tensor | None, out: torch.Tensor) -> bool:
    taken = None if residual is None else as_array(residual)
    return compiled_wide.widen_into(as_array(stored), taken, as_array(out))


def round_into(out: torch.Tensor, exact: torch.Tensor) -> bool:
    return compiled_wide.round_into(as_array(out), as_array(exact))


def every_value(dtype: torch.dtype) -> torch.Tensor:
    """All finite values of 16 bits; a spread of those of 32."""
    step = 1 if dtype != torch.float32 else 65_521
    bits = torch.arange(-(2 ** (8 * dtype.itemsize - 1)), 2 ** (8 * dtype.itemsize - 1), step)
    values = bits.to(BITS[dtype]).view(dtype)
    return values[values.isfinite()]


def agree(exact: torch.Tensor, dtype: torch.dtype) -> None:
    wanted = torch.empty(exact.shape, dtype=dtype)
    rounding.round_into(wanted, exact)
    found = torch.empty_like(wanted)
    finite = round_into(found, exact)
    assert finite == bool(wanted.isfinite().all())
    fine = wanted.isfinite()
    assert same_bits(found[fine], wanted[fine])


@pytest.mark.parametrize("dtype", NARROW)
def test_every_value_is_widened_exactly(dtype: torch.dtype) -> None:
    values = every_value(dtype)
    out = torch.empty(len(values), dtype=torch.float64)
    assert widen_into(values, None, out)
    assert same_bits(out, values.double())
    residual = torch.linspace(-1, 1, len(values)) * 1e-3
    assert widen_into(values, residual, out)
    assert same_bits(out, values.double() + residual)


@pytest.mark.parametrize("dtype", NARROW)
def test_values_ties_and_their_neighbours_are_rounded_to_nearest_even(dtype: torch.dtype) -> None:
    values = every_value(dtype).double().sort().values
    ties = (values[1:] + values[:-1]) / 2
    near = [ties, torch.nextafter(ties, values[1:]), torch.nextafter(ties, values[:-1])]
    for exact in (values, *near, ties * (1 + 2**-40)):
        agree(exact[exact.abs() <= torch.finfo(dtype).max], dtype)
        agree(exact, dtype)


@pytest.mark.parametrize("dtype", NARROW)
@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.floats(width=64), min_size=1, max_size=40))
def test_any_float64_is_rounded_as_the_reference_rounds_it(
    dtype: torch.dtype, values: list[float]
) -> None:
    agree(torch.tensor(values, dtype=torch.float64), dtype)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_reported_wherever_it_is(dtype: torch.dtype, value: float) -> None:
    stored = torch.zeros(1001, dtype=dtype)
    stored[700] = value
    out = torch.empty(1001, dtype=torch.float64)
    assert not widen_into(stored, None, out)
    assert not round_into(torch.empty(1001, dtype=dtype), stored.double())
    residual = torch.zeros(1001)
    assert widen_into(torch.zeros_like(stored), residual, out)
    residual[3] = value
    assert not widen_into(torch.zeros_like(stored), residual, out)


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_too_large_is_reported(dtype: torch.dtype) -> None:
    out = torch.empty(5, dtype=dtype)
    assert round_into(out, torch.full((5,), torch.finfo(dtype).max).double())
    for large in (2.0 * torch.finfo(dtype).max, 1e300):
        assert not round_into(out, torch.full((5,), large, dtype=torch.float64))
