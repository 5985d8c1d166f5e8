"""The last rounding happens once, even from float64 to 16 bits."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from exactly import nearest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import same_bits

from mergekit_cl.merge.rounding import round_into, round_to_odd

SIXTEEN = [torch.bfloat16, torch.float16]


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(values.shape, dtype=dtype)
    round_into(out, values)
    return out


def check(values: list[float], dtype: torch.dtype) -> None:
    found = rounded(torch.tensor(values, dtype=torch.float64), dtype)
    expected = [nearest(Fraction(v), dtype) if math.isfinite(v) else v for v in values]
    wanted = torch.tensor(expected, dtype=torch.float64).to(dtype)  # exact: they are in its grid
    signs = torch.tensor([math.copysign(1, v) for v in values])
    wanted = torch.where(wanted == 0, torch.copysign(wanted, signs.to(dtype)), wanted)
    assert same_bits(found, wanted)


def test_the_example_that_torch_rounds_twice_is_rounded_once() -> None:
    value = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
    assert value.to(torch.bfloat16).item() == 1.0  # the failure this prevents
    assert rounded(value, torch.bfloat16).item() == 1 + 2**-7


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_ties_and_their_neighbours_go_where_fractions_say(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2**15, (300,), generator=generator).to(torch.int16)
    low = bits.view(dtype)
    high = (bits + 1).clamp(max=2**15 - 1).to(torch.int16).view(dtype)
    both = low.isfinite() & high.isfinite()
    middles = ((low.double() + high.double()) / 2)[both].tolist()
    values = []
    for middle in middles:
        for step in (0, 2**-30, -(2**-30), 2**-50, -(2**-50)):
            values += [middle * (1 + step), -middle * (1 + step)]
    check(values, dtype)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_the_ends_of_the_range_go_where_fractions_say(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps  # the least subnormal
    step = 2 ** (math.floor(math.log2(info.max)) - (7 if dtype == torch.bfloat16 else 10))
    ends = [info.max, info.max + step / 2, info.max + step / 2 * (1 - 2**-40), info.max + step]
    ends += [2.0**128, 3.4e38, 1e300, 1.7e308, math.inf]
    ends += [tiny, tiny / 2, tiny / 2 * (1 + 2**-40), tiny * 1.5, tiny / 4, info.smallest_normal]
    ends += [1e-45, 1e-46, 1e-60, 5e-324, 0.0]
    check([*ends, *(-end for end in ends)], dtype)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(SIXTEEN),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=50),
)
def test_any_float64_is_rounded_as_its_fraction(dtype: torch.dtype, values: list[float]) -> None:
    check(values, dtype)


def test_nan_stays_nan() -> None:
    values = torch.tensor([math.nan, 1.0], dtype=torch.float64)
    for dtype in SIXTEEN:
        assert rounded(values, dtype).isnan().tolist() == [True, False]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(-3e38, 3e38), min_size=1, max_size=50))
def test_rounding_to_odd_keeps_what_float32_holds_and_marks_what_it_does_not(
    values: list[float],
) -> None:
    exact = torch.tensor(values, dtype=torch.float64)
    odd = round_to_odd(exact)
    for value, found in zip(values, odd.tolist(), strict=True):
        if Fraction(value) == Fraction(nearest(Fraction(value), torch.float32)):
            assert found == value
            continue
        # One of the two neighbours: nothing of float32 lies between it and the value.
        down, up = (
            torch.nextafter(torch.tensor(found), torch.tensor(side)).item()
            for side in (-math.inf, math.inf)
        )
        assert down < value < up
    inexact = odd.double() != exact
    assert bool((odd.view(torch.int32)[inexact] & 1).all())


@pytest.mark.parametrize("dtype", [*SIXTEEN, torch.float32, torch.float64], ids=str)
def test_float32_results_are_rounded_to_nearest_even(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(500, generator=generator) * 2.0 ** torch.randint(
        -20, 12, (500,), generator=generator
    )
    expected = [nearest(Fraction(v), dtype) for v in values.double().tolist()]
    assert rounded(values, dtype).double().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_short_way_gives_the_bits_of_rounding_to_odd(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(2**16, generator=generator).to(dtype).double()
    scale = 2.0 ** torch.randint(-30, 20, near.shape, generator=generator)
    above = torch.nextafter((near * scale).to(dtype), torch.tensor(torch.inf, dtype=dtype)).double()
    ties = ((near * scale).to(dtype).double() + above) / 2
    for exact in (near * scale * 1.0001, ties, ties * (1 + 2**-40), ties * (1 - 2**-45), near):
        out = torch.empty(len(exact), dtype=dtype)
        round_into(out, exact)
        assert torch.equal(out.view(torch.int16), round_to_odd(exact).to(dtype).view(torch.int16))
