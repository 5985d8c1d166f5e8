"""The Fisher-weighted mean against exact fractions and float64, and the laws it must keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from exactly import fractions, spacing
from hypothesis import given, settings
from hypothesis import strategies as st
from making import same_bits

from mergekit_cl.merge.fisher import Fallback, Scale, fisher_weighted
from mergekit_cl.merge.kernel import SCRATCH_BUFFERS
from mergekit_cl.merge.rounding import round_into

SIXTEEN = [torch.bfloat16, torch.float16]
DTYPES = [*SIXTEEN, torch.float32, torch.float64]
EPSILON = 1e-6


def run(
    inputs: Sequence[torch.Tensor],
    fishers: Sequence[torch.Tensor],
    out: torch.dtype,
    *,
    scales: Sequence[Scale],
    fallback: Fallback = "linear",
    base: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """One block as the stream does it: widen, merge, round once."""
    wide = torch.float64 if torch.float64 in {x.dtype for x in inputs} else torch.float32
    operands = [x.to(wide) for x in [*inputs, *fishers, *([] if base is None else [base])]]
    scratch = [torch.full_like(operands[0], math.nan) for _ in range(SCRATCH_BUFFERS)]
    before = [x.clone() for x in operands]
    merged = fisher_weighted(operands, scratch, scales=scales, fallback=fallback)
    assert all(same_bits(x, y) for x, y in zip(operands, before, strict=True)), "operands changed"
    result = torch.empty(inputs[0].shape, dtype=out)
    round_into(result, merged.exact)
    return result, merged.fallback


def trace_scales(fishers: Sequence[torch.Tensor], weights: Sequence[float]) -> list[Scale]:
    """Scales of a model that has this one tensor: s_k and m_k are its mean."""
    means = [float(f.double().mean()) for f in fishers]
    return [Scale(w, w / m, EPSILON * m) for w, m in zip(weights, means, strict=True)]


def case(count: int, size: int, dtype: torch.dtype, spread: float = 1.0) -> Any:
    """Models, Fishers over many orders of magnitude, and weights that make no ties."""
    generator = torch.Generator().manual_seed(count)

    def draw() -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64) * 0.02

    base = draw()
    inputs = [(draw() if spread == 1 else base + spread * draw()).to(dtype) for _ in range(count)]
    fishers = [(torch.rand(size, generator=generator) * 20 - 30).exp() for _ in range(count)]
    weights = (torch.rand(count, generator=generator).double() + 0.1).tolist()
    return inputs, fishers, weights


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", range(2, 9))
def test_the_mean_is_within_a_unit_in_the_last_place_of_exact_fractions(
    count: int, dtype: torch.dtype
) -> None:
    inputs, fishers, weights = case(count, 150, dtype)
    scales = trace_scales(fishers, weights)
    result, fell_back = run(inputs, fishers, dtype, scales=scales)
    assert fell_back == 0
    # float32 and float64 results are rounded at every step, 16-bit ones only at the end.
    units = 1 if dtype in SIXTEEN else 2 * count
    models = zip(*(fractions(x) for x in inputs), strict=True)
    stored = zip(*(fractions(f) for f in fishers), strict=True)
    for found, column, raw in zip(fractions(result), models, stored, strict=True):
        shares = [
            Fraction(s.factor) * max(f, Fraction(s.floor)) for s, f in zip(scales, raw, strict=True)
        ]
        exact = sum(g * x for g, x in zip(shares, column, strict=True)) / sum(shares)
        assert abs(found - exact) <= units * spacing(max(map(abs, column)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_equal_inputs_keep_their_bits_whatever_their_fishers(
    count: int, dtype: torch.dtype
) -> None:
    _, fishers, weights = case(count, 4096, dtype)
    generator = torch.Generator().manual_seed(9)
    item = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 256, (4096 * item,), generator=generator, dtype=torch.uint8)
    values = torch.where(raw.view(dtype).isfinite(), raw.view(dtype), 0)
    values[:4] = torch.tensor([-0.0, 0.0, -1e-45, 1e-40]).to(dtype)
    for fisher in fishers:
        fisher[::3] = 0
    result, _ = run([values] * count, fishers, dtype, scales=trace_scales(fishers, weights))
    assert same_bits(result, values)


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
RAW = st.one_of(st.just(0.0), st.floats(2.0**-100, 2.0**60, width=32))


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.integers(2, 8).flatmap(
        lambda k: st.tuples(
            st.lists(st.tuples(*[st.tuples(FLOATS, RAW)] * k), min_size=1, max_size=8),
            st.lists(st.floats(0.01, 1), min_size=k, max_size=k),
        )
    ),
)
def test_the_mean_lies_between_its_inputs(dtype: torch.dtype, drawn: Any) -> None:
    rows, weights = drawn
    columns = list(zip(*rows, strict=True))
    inputs = [torch.tensor([x for x, _ in column]).to(dtype) for column in columns]
    fishers = [torch.tensor([f for _, f in column]) for column in columns]
    scales = [Scale(w, w, 2.0**-110) for w in weights]
    result, _ = run(inputs, fishers, dtype, scales=scales)
    together = torch.stack(inputs)
    assert bool((result >= together.amin(0)).all())
    assert bool((result <= together.amax(0)).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swapping_two_models_with_all_that_is_theirs_changes_no_bit(dtype: torch.dtype) -> None:
    inputs, fishers, weights = case(2, 5000, dtype)
    scales = trace_scales(fishers, weights)
    one, _ = run(inputs, fishers, dtype, scales=scales)
    other, _ = run(inputs[::-1], fishers[::-1], dtype, scales=scales[::-1])
    assert same_bits(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_model_of_weight_zero_changes_nothing(dtype: torch.dtype, absent: int) -> None:
    inputs, fishers, weights = case(3, 5000, dtype)
    weights[absent] = 0.0
    scales = trace_scales(fishers, weights)
    with_it, _ = run(inputs, fishers, dtype, scales=scales)
    kept = [k for k in range(3) if k != absent]
    without, _ = run(
        [inputs[k] for k in kept],
        [fishers[k] for k in kept],
        dtype,
        scales=[scales[k] for k in kept],
    )
    assert same_bits(with_it, without)


def test_one_model_of_all_weight_is_that_model() -> None:
    inputs, fishers, _ = case(2, 5000, torch.float32)
    result, _ = run(inputs, fishers, torch.float32, scales=trace_scales(fishers, [0.0, 1.0]))
    assert same_bits(result, inputs[1])


def test_a_known_value() -> None:
    # (1 * 3 * 10 + 1 * 1 * 20) / (3 + 1) = 12.5
    inputs = [torch.tensor([10.0]), torch.tensor([20.0])]
    fishers = [torch.tensor([3.0]), torch.tensor([1.0])]
    result, _ = run(inputs, fishers, torch.float32, scales=[Scale(0.5, 0.5, 0), Scale(0.5, 0.5, 0)])
    assert result.item() == 12.5


def test_a_tiny_fisher_still_decides_because_the_floor_is_relative() -> None:
    # Fishers of language models lie near 1e-12. Published tools add or clamp at 1e-6 or 1e-8
    # absolute, which makes 1e-11 and 1e-13 the same number and this merge a plain average: 0.5.
    inputs = [torch.zeros(100), torch.ones(100)]
    fishers = [torch.full((100,), 1e-13), torch.full((100,), 1e-13)]
    fishers[0][:50], fishers[1][50:] = 1e-11, 1e-11
    result, fell_back = run(
        inputs, fishers, torch.float32, scales=trace_scales(fishers, [0.5, 0.5])
    )
    assert fell_back == 0
    torch.testing.assert_close(result[:50], torch.full((50,), 1 / 101))
    torch.testing.assert_close(result[50:], torch.full((50,), 100 / 101))


def test_the_floor_is_the_least_fisher() -> None:
    # Model 0 measured 0 where model 1 measured its mean: 0 counts as eps, not as nothing.
    inputs = [torch.tensor([0.0]), torch.tensor([1.0])]
    fishers = [torch.tensor([0.0]), torch.tensor([1.0])]
    scales = [Scale(0.5, 0.5, 0.25), Scale(0.5, 0.5, 0.25)]
    result, fell_back = run(inputs, fishers, torch.float32, scales=scales)
    assert fell_back == 0
    assert math.isclose(result.item(), 0.8, rel_tol=1e-7)


@pytest.mark.parametrize(
    ("fallback", "expected"),
    [("linear", 0.25 * 1 + 0.75 * 5), ("base", 7.0), ("first", 1.0)],
)
def test_where_every_fisher_is_zero_the_fallback_decides_and_is_counted(
    fallback: Any, expected: float
) -> None:
    inputs = [torch.full((4,), 1.0), torch.full((4,), 5.0)]
    fishers = [torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])]
    scales = [Scale(0.25, 0.25, 1e-6), Scale(0.75, 0.75, 1e-6)]
    result, fell_back = run(
        inputs,
        fishers,
        torch.float32,
        scales=scales,
        fallback=fallback,
        base=torch.full((4,), 7.0) if fallback == "base" else None,
    )
    assert fell_back == 1
    assert result[0].item() == expected
    # Elsewhere the Fishers decide: one that is 0 counts as the floor, both as themselves.
    torch.testing.assert_close(result[1:], torch.tensor([1.0, 5.0, 4.0]), rtol=0, atol=2e-5)


def test_a_sum_however_small_is_no_exact_zero() -> None:
    inputs = [torch.tensor([1.0]), torch.tensor([5.0])]
    fishers = [torch.tensor([0.0]), torch.tensor([1e-37])]
    scales = [Scale(0.5, 0.5, 0), Scale(0.5, 0.5, 0)]
    result, fell_back = run(inputs, fishers, torch.float32, scales=scales, fallback="first")
    assert (result.item(), fell_back) == (5.0, 0)


@pytest.mark.parametrize("only", [0, 1, 2, 3])
def test_without_a_floor_the_one_model_that_measured_something_decides(only: int) -> None:
    inputs = [torch.tensor([float(k)]) for k in range(4)]
    fishers = [torch.tensor([1e-8 if k == only else 0.0]) for k in range(4)]
    scales = [Scale(0.25, 0.25, 0.0)] * 4
    result, fell_back = run(inputs, fishers, torch.float32, scales=scales)
    assert (result.item(), fell_back) == (only, 0)


def test_a_base_given_without_need_is_ignored() -> None:
    inputs, fishers, weights = case(2, 1000, torch.bfloat16)
    scales = trace_scales(fishers, weights)
    without, _ = run(inputs, fishers, torch.bfloat16, scales=scales)
    base = torch.full((1000,), 99.0)
    with_base, _ = run(inputs, fishers, torch.bfloat16, scales=scales, base=base)
    assert same_bits(without, with_base)
