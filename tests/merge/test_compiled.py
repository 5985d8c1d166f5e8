"""Compiled kernels give the bits of the reference formulas, for any finite block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import same_bits

from mergekit_cl.checkpoint.arrays import Arrays, as_array
from mergekit_cl.merge.compiled import Compiled, block_kernel
from mergekit_cl.merge.ema import ema_update
from mergekit_cl.merge.fisher import Scale, fisher_weighted
from mergekit_cl.merge.formula import Differences, FisherMean, Formula, Updates, mean_of
from mergekit_cl.merge.kernel import SCRATCH_BUFFERS, Merged
from mergekit_cl.merge.linear import weighted_deltas, weighted_mean
from mergekit_cl.merge.rounding import round_into

DTYPES = [torch.bfloat16, torch.float32]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, -3e38, 1 + 2**-8, 1 + 2**-7]


def compiled(
    formula: Formula,
    stored: list[torch.Tensor],
    dtype: torch.dtype,
    compute: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, Compiled]:
    out = torch.empty(stored[0].shape, dtype=dtype)
    exact = torch.empty(stored[0].shape, dtype=compute)
    bounds = np.asarray([0, len(out)])
    run = block_kernel([formula], Arrays().like)
    return out, exact, run(list(map(as_array, stored)), bounds, as_array(out), as_array(exact))


def formula_of(
    formula: Formula, wide: list[torch.Tensor], scratch: list[torch.Tensor], weights: list[float]
) -> Merged:
    """What the reference makes of it; weights: those of a mean, as they were given."""
    if isinstance(formula, Updates):
        return ema_update(wide, scratch, decays=formula.decays)
    if isinstance(formula, FisherMean):
        return fisher_weighted(wide, scratch, scales=formula.scales, fallback="linear")
    if len(formula.terms) == len(weights):  # the base is last
        return weighted_deltas(wide, scratch, weights=weights)
    return weighted_mean(wide[: len(weights)], scratch, weights=weights)


def agree(
    formula: Formula,
    stored: list[torch.Tensor],
    dtype: torch.dtype,
    compute: torch.dtype = torch.float32,
    weights: list[float] | None = None,
) -> bool:
    """Whether a block is finite; if so, checks that every bit is the reference's."""
    out, exact, done = compiled(formula, stored, dtype, compute)
    wide = [x.to(compute) for x in stored]
    scratch = [torch.full_like(wide[0], math.nan) for _ in range(SCRATCH_BUFFERS)]
    merged = formula_of(formula, wide, scratch, weights or [])
    wanted = torch.empty(wide[0].shape, dtype=dtype)
    round_into(wanted, merged.exact)
    finite = all(bool(x.isfinite().all()) for x in (*stored, wanted))
    assert done.finite == finite
    if done.finite:
        assert same_bits(out, wanted)
        assert same_bits(exact, merged.exact)
        assert done.fallback == (None if merged.fallback is None else [merged.fallback])
    return done.finite


def mean_agrees(
    weights: list[float],
    stored: list[torch.Tensor],
    dtype: torch.dtype,
    compute: torch.dtype = torch.float32,
) -> bool:
    return agree(mean_of(weights), stored, dtype, compute, weights)


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
    mean_agrees([weight, 1 - weight], [a, b], dtype)
    tame = slice(len(SPECIAL), None)
    assert mean_agrees([weight, 1 - weight], [a[tame], b[tame]], dtype)


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
    assert agree(FisherMean(scales), operands, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_inputs_keep_their_bits(dtype: torch.dtype) -> None:
    a = block(3, dtype, 1.0)
    for formula in (
        mean_of((0.3, 0.7)),
        FisherMean((Scale(0.3, 1.0, 1e-6), Scale(0.7, 2.0, 1e-6))),
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
    assert not compiled(FisherMean(scales), operands, torch.bfloat16)[2].finite
    if where < 2:
        for weights in ((0.0, 1.0), (1.0, 0.0), (0.4, 0.6)):
            assert not compiled(mean_of(weights), operands[:2], torch.bfloat16)[2].finite


def test_an_overflow_of_finite_inputs_is_reported() -> None:
    large = torch.full((33,), 3e38)
    assert not compiled(mean_of((2.0, -1.0)), [large, -large], torch.float32)[2].finite
    # Finite as float32, beyond the largest bfloat16 once rounded.
    edge = torch.full((33,), torch.finfo(torch.float32).max)
    assert not compiled(mean_of((0.5, 0.5)), [edge, edge], torch.bfloat16)[2].finite


def test_an_empty_block_is_nothing() -> None:
    empty = torch.empty(0, dtype=torch.bfloat16)
    assert compiled(mean_of((0.5, 0.5)), [empty, empty], torch.bfloat16)[2] == (True, None)


ARITHMETIC = [
    (torch.bfloat16, torch.float64),
    (torch.float32, torch.float32),
    (torch.float16, torch.float64),
    (torch.float16, torch.float32),
]


def inputs(count: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Blocks of one dtype, and the last of another, without huge values."""
    found = [block(seed + k, dtype, 0.05)[len(SPECIAL) :] for k in range(count)]
    found[-1] = found[-1].to(torch.float32 if dtype != torch.float32 else torch.bfloat16)
    for k, one in enumerate(found):
        one[:3] = torch.tensor([-0.0, 0.0, 0.25])  # where they agree, bits stay
        one[3] = [-0.0, 0.0][k % 2]
    return found


@pytest.mark.parametrize(("dtype", "compute"), ARITHMETIC)
@pytest.mark.parametrize("count", [2, 3, 5])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 99), data=st.data())
def test_a_mean_of_any_number_has_the_bits_of_the_reference(
    count: int, dtype: torch.dtype, compute: torch.dtype, seed: int, data: st.DataObject
) -> None:
    drawn = data.draw(st.lists(st.floats(-0.4, 1.0), min_size=count - 1, max_size=count - 1))
    weights = [*drawn, 1 - sum(drawn)]
    assert mean_agrees(weights, inputs(count, dtype, seed), dtype, compute)


@pytest.mark.parametrize(("dtype", "compute"), ARITHMETIC)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 99), weights=st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_differences_from_a_base_have_the_bits_of_the_reference(
    dtype: torch.dtype, compute: torch.dtype, seed: int, weights: list[float]
) -> None:
    operands = inputs(len(weights) + 1, dtype, seed)
    formula = Differences(len(weights), tuple(enumerate(weights)))
    assert agree(formula, operands, dtype, compute, weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 99), decays=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_updates_in_turn_have_the_bits_of_the_reference(
    dtype: torch.dtype, seed: int, decays: list[float]
) -> None:
    operands = inputs(len(decays) + 1, dtype, seed)
    assert agree(Updates(tuple(decays)), operands, dtype)


@pytest.mark.parametrize(("dtype", "compute"), ARITHMETIC)
@pytest.mark.parametrize("count", [2, 3, 5])
@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 99),
    floor=st.sampled_from([0.0, 1e-6, 0.3]),
    factor=st.floats(1e-3, 1e3),
)
def test_a_fisher_merge_of_any_number_has_the_bits_of_the_reference(
    count: int, dtype: torch.dtype, compute: torch.dtype, seed: int, floor: float, factor: float
) -> None:
    operands = inputs(count, dtype, seed)
    measured = [fishers((seed + k) % 4, torch.bfloat16)[len(SPECIAL) :] for k in range(count)]
    for fisher in measured:
        fisher[100:200] = 0
    weights = [(k + 1) / sum(range(count + 1)) for k in range(count)]
    scales = tuple(Scale(w, w * factor**k, floor / (k + 1)) for k, w in enumerate(weights))
    assert agree(FisherMean(scales), [*operands, *measured], dtype, compute)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", range(6))
@pytest.mark.parametrize("compute", [torch.float32, torch.float64])
def test_anything_of_three_that_is_not_finite_is_reported(
    compute: torch.dtype, where: int, value: float
) -> None:
    operands = inputs(3, torch.bfloat16, 0)
    operands += [fishers(k, torch.bfloat16)[len(SPECIAL) :] for k in range(3)]
    operands[where][1234] = value
    scales = tuple(Scale(1 / 3, 1.0, 1e-6) for _ in range(3))
    assert not compiled(FisherMean(scales), operands, torch.bfloat16, compute)[2].finite
    if where < 3:
        formulas = (mean_of((0.2, 0.3, 0.5)), Updates((0.9, 0.2)), Differences(2, ((0, 1), (1, 1))))
        for formula in formulas:
            assert not compiled(formula, operands[:3], torch.bfloat16, compute)[2].finite
