"""Compiled kernels give the bits of the reference formulas, for any finite block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import same_bits

from mergekit_cl.checkpoint.arrays import as_array
from mergekit_cl.merge.compiled import Compiled, pair_kernel
from mergekit_cl.merge.fisher import Scale, fisher_weighted
from mergekit_cl.merge.formula import Formula, PairFisher, PairMean
from mergekit_cl.merge.kernel import SCRATCH_BUFFERS
from mergekit_cl.merge.linear import weighted_mean
from mergekit_cl.merge.rounding import round_into

DTYPES = [torch.bfloat16, torch.float32]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, -3e38, 1 + 2**-8, 1 + 2**-7]


def compiled(
    formula: Formula, stored: list[torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, Compiled]:
    out = torch.empty(stored[0].shape, dtype=dtype)
    exact = torch.empty(stored[0].shape)
    bounds = np.asarray([0, len(out)])
    run = pair_kernel([formula])
    return out, exact, run(list(map(as_array, stored)), bounds, as_array(out), as_array(exact))


def reference(
    formula: Formula, stored: list[torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    wide = [x.to(torch.float32) for x in stored]
    scratch = [torch.full_like(wide[0], math.nan) for _ in range(SCRATCH_BUFFERS)]
    if isinstance(formula, PairMean):
        merged = weighted_mean(wide[:2], scratch, weights=formula.weights)
    else:
        merged = fisher_weighted(wide, scratch, scales=formula.scales, fallback="linear")
    out = torch.empty(wide[0].shape, dtype=dtype)
    round_into(out, merged.exact)
    return out, merged.exact, merged.fallback


def agree(formula: Formula, stored: list[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether a block is finite; if so, checks that every bit is the reference's."""
    out, exact, done = compiled(formula, stored, dtype)
    wanted, wanted_exact, fallback = reference(formula, stored, dtype)
    finite = all(bool(x.isfinite().all()) for x in (*stored, wanted))
    assert done.finite == finite
    if done.finite:
        assert same_bits(out, wanted)
        assert same_bits(exact, wanted_exact)
        assert done.fallback == (None if fallback is None else [fallback])
    return done.finite


def block(seed: int, dtype: torch.dtype, scale: float, size: int = 4099) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator) * scale
    values[: len(SPECIAL)] = torch.tensor(SPECIAL)
    values[len(SPECIAL) :: 7] = values[len(SPECIAL) :: 7].abs() * 1e-3
    return values.to(dtype)


def fishers(seed: int, dtype: torch.dtype) -> torch.Tensor:
    values = block(seed, torch.float32, 1.0).abs().pow(4).clamp(max=1e30)
    values[seed::5] = 0.0
    return values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
@settings(deadline=None, max_examples=25)
@given(
    weight=st.floats(-1.5, 2.5, allow_nan=False), seed=st.integers(0, 99), relative=st.floats(0, 2)
)
def test_a_mean_of_two_has_the_bits_of_the_reference(
    dtype: torch.dtype, second: torch.dtype, weight: float, seed: int, relative: float
) -> None:
    a = block(seed, dtype, 0.02)
    b = (a.float() + block(seed + 1, torch.float32, 0.02 * relative)).to(second)
    # The huge values may cancel, or overflow: both are for the reference to say.
    agree(PairMean((weight, 1 - weight)), [a, b], dtype)
    tame = slice(len(SPECIAL), None)
    assert agree(PairMean((weight, 1 - weight)), [a[tame], b[tame]], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
@settings(deadline=None, max_examples=25)
@given(
    weight=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
    floor=st.sampled_from([0.0, 1e-6, 0.3]),
    factor=st.floats(1e-3, 1e3),
)
def test_a_fisher_merge_of_two_has_the_bits_of_the_reference(
    dtype: torch.dtype, stored: torch.dtype, weight: float, seed: int, floor: float, factor: float
) -> None:
    a, b = block(seed, dtype, 0.02), block(seed + 1, dtype, 0.02)
    scales = (Scale(weight, weight * factor, floor), Scale(1 - weight, 1 - weight, floor / 2))
    operands = [a, b, fishers(seed % 3, stored), fishers(seed % 4, stored)]
    assert agree(PairFisher(scales), operands, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_inputs_keep_their_bits(dtype: torch.dtype) -> None:
    a = block(3, dtype, 1.0)
    for formula in (
        PairMean((0.3, 0.7)),
        PairFisher((Scale(0.3, 1.0, 1e-6), Scale(0.7, 2.0, 1e-6))),
    ):
        out, _, done = compiled(
            formula, [a, a.clone(), fishers(0, dtype), fishers(1, dtype)], dtype
        )
        assert done.finite
        assert same_bits(out, a)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("place", [0, 1, 4097])
def test_anything_that_is_not_finite_is_reported(value: float, where: int, place: int) -> None:
    operands = [
        block(0, torch.bfloat16, 1.0),
        block(1, torch.bfloat16, 1.0),
        fishers(0, torch.bfloat16),
        fishers(1, torch.bfloat16),
    ]
    operands[where][place] = value
    scales = (Scale(0.5, 1.0, 1e-6), Scale(0.5, 1.0, 1e-6))
    assert not compiled(PairFisher(scales), operands, torch.bfloat16)[2].finite
    if where < 2:
        for weights in ((0.0, 1.0), (1.0, 0.0), (0.4, 0.6)):
            assert not compiled(PairMean(weights), operands[:2], torch.bfloat16)[2].finite


def test_an_overflow_of_finite_inputs_is_reported() -> None:
    large = torch.full((33,), 3e38)
    assert not compiled(PairMean((2.0, -1.0)), [large, -large], torch.float32)[2].finite
    # Finite as float32, beyond the largest bfloat16 once rounded.
    edge = torch.full((33,), torch.finfo(torch.float32).max)
    assert not compiled(PairMean((0.5, 0.5)), [edge, edge], torch.bfloat16)[2].finite


def test_an_empty_block_is_nothing() -> None:
    empty = torch.empty(0, dtype=torch.bfloat16)
    assert compiled(PairMean((0.5, 0.5)), [empty, empty], torch.bfloat16)[2] == (True, None)
