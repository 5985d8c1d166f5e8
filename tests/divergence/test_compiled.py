"""Compiled divergence sums against exact ones of the same values."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from mergekit_cl.checkpoint.arrays import as_array
from mergekit_cl.divergence import compiled
from mergekit_cl.divergence.sums import Sums

SIZE = 5003


def block_sums(
    merged: torch.Tensor,
    exact: torch.Tensor,
    parents: list[torch.Tensor],
    fishers: list[torch.Tensor | None],
    fallback: int | None,
) -> list[Sums]:
    """Of a block that is one tensor."""
    (found,) = compiled.block_sums(
        as_array(merged),
        as_array(exact),
        [as_array(parent) for parent in parents],
        [None if fisher is None else as_array(fisher) for fisher in fishers],
        np.asarray([0, len(merged)]),
        None if fallback is None else [fallback],
    )
    return found


def draw(seed: int, dtype: torch.dtype, scale: float) -> torch.Tensor:
    return (torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("parent_dtype", [torch.bfloat16, torch.float32])
def test_sums_are_those_of_float64(dtype: torch.dtype, parent_dtype: torch.dtype) -> None:
    parents = [draw(k, parent_dtype, 0.1) for k in range(2)]
    exact = parents[0].float() * 0.4 + parents[1].float() * 0.6
    merged = exact.to(dtype)
    merged[:100] = parents[0][:100].to(dtype)
    fisher = draw(7, torch.bfloat16, 1.0).square()
    found = block_sums(merged, exact, parents, [fisher, None], 5)
    m, x, f = (t.double().numpy() for t in (merged, exact, fisher))
    for k, sums in enumerate(found):
        p = parents[k].double().numpy()
        d, u = m - p, x - p
        expected = {
            "count": SIZE,
            "parent_square": np.sum(p * p),
            "merged_square": np.sum(m * m),
            "difference_square": np.sum(d * d),
            "largest": np.abs(d).max(),
            "changed": int(np.count_nonzero(d)),
            "update_square": np.sum(u * u),
            "update_survived": np.sum(u * d),
            "rounding_square": np.sum((m - x) ** 2),
            "fisher_square": None if k else np.sum(f * d * d),
            "fallback": 5,
        }
        for field, value in expected.items():
            got = getattr(sums, field)
            assert got == (None if value is None else pytest.approx(value, rel=1e-12)), field
        assert sums.largest == np.abs(d).max()
        assert {field.name for field in fields(sums)} >= set(expected)


def test_zeros_of_both_signs_differ_in_their_bits() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        zero = torch.zeros(4, dtype=dtype)
        (sums,) = block_sums(-zero, zero.float(), [zero], [None], None)
        assert (sums.changed, sums.largest) == (4, 0.0)


def test_an_empty_block_sums_to_nothing() -> None:
    empty = torch.empty(0, dtype=torch.bfloat16)
    (sums,) = block_sums(empty, empty.float(), [empty], [empty], 0)
    assert (sums.count, sums.difference_square, sums.largest, sums.changed) == (0, 0.0, 0.0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("parent_dtype", [torch.bfloat16, torch.float32])
def test_sums_of_a_difference_are_those_of_float64(
    dtype: torch.dtype, parent_dtype: torch.dtype
) -> None:
    merged, parents = draw(9, dtype, 0.1), [draw(k, parent_dtype, 0.1) for k in range(2)]
    fisher = draw(7, torch.float32, 1.0).square()
    arrays = [as_array(parent) for parent in parents]
    found = compiled.difference_sums(as_array(merged), arrays, [as_array(fisher), None])
    assert found is not None
    m, f = merged.double().numpy(), fisher.double().numpy()
    for k, sums in enumerate(found):
        p = parents[k].double().numpy()
        d = m - p
        assert sums == Sums(
            count=SIZE,
            parent_square=pytest.approx(np.sum(p * p), rel=1e-12),
            merged_square=pytest.approx(np.sum(m * m), rel=1e-12),
            difference_square=pytest.approx(np.sum(d * d), rel=1e-12),
            largest=np.abs(d).max(),
            changed=int(np.count_nonzero(d)),
            update_square=None,
            update_survived=None,
            rounding_square=None,
            fisher_square=None if k else pytest.approx(np.sum(f * d * d), rel=1e-12),
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize("place", [0, 17, SIZE - 1])
def test_sums_of_a_difference_are_left_to_the_reference_where_something_is_not_finite(
    value: float, where: int, place: int
) -> None:
    blocks = [draw(k, torch.bfloat16, 1.0).abs() for k in range(3)]
    blocks[where][place] = value
    merged, parent, fisher = map(as_array, blocks)
    assert compiled.difference_sums(merged, [parent], [fisher]) is None
