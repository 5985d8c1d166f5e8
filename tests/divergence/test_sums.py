"""Block sums against float64 numpy, and the way they add."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from mergekit_cl.divergence.sums import SCRATCH_BUFFERS, Sums, block_sums, total

CONFLICT = {"conflict", "conflict_whole"}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def draw(size: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(size, generator=generator, dtype=torch.float64) * 0.02).to(dtype)


def scratch(size: int) -> list[torch.Tensor]:
    return [torch.full((size,), math.nan, dtype=torch.float64) for _ in range(SCRATCH_BUFFERS)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_sum_is_the_one_of_float64_numpy(dtype: torch.dtype) -> None:
    merged, exact = draw(5000, dtype, 0), draw(5000, torch.float32, 1)
    parents = [draw(5000, dtype, 2), draw(5000, torch.bfloat16, 3)]
    fishers = [draw(5000, torch.float32, 4).abs(), draw(5000, torch.bfloat16, 5).abs()]
    found = block_sums(merged, exact, parents, fishers, [7, 8], 3, scratch(5000))
    m, x = merged.double().numpy(), exact.double().numpy()
    for k, (parent, fisher) in enumerate(zip(parents, fishers, strict=True)):
        p, f = parent.double().numpy(), fisher.double().numpy()
        expected = Sums(
            count=5000,
            parent_square=math.fsum(p * p),
            merged_square=math.fsum(m * m),
            difference_square=math.fsum((m - p) ** 2),
            largest=float(np.abs(m - p).max()),
            changed=7 + k,
            update_square=math.fsum((x - p) ** 2),
            update_survived=math.fsum((x - p) * (m - p)),
            rounding_square=math.fsum((m - x) ** 2),
            fisher_square=math.fsum(f * (m - p) ** 2),
            fallback=3,
        )
        assert {n for n, v in asdict(found[k]).items() if v is None} == CONFLICT
        for name in asdict(expected).keys() - CONFLICT:
            value = getattr(expected, name)
            assert getattr(found[k], name) == pytest.approx(value, rel=1e-9), name


def test_operands_are_left_as_they_are() -> None:
    tensors = [draw(100, torch.float64, seed) for seed in range(4)]
    before = [t.clone() for t in tensors]
    merged, exact, parent, fisher = tensors
    block_sums(merged, exact, [parent], [fisher], [0], 0, scratch(100))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_what_nobody_knows_is_none() -> None:
    (found,) = block_sums(torch.ones(3), None, [torch.zeros(3)], [None], [3], None, scratch(3))
    assert found.update_square is None
    assert found.update_survived is None
    assert found.fisher_square is None
    assert found.fallback is None
    assert found.difference_square == 3


def test_an_empty_block_adds_nothing() -> None:
    empty = torch.empty(0)
    (found,) = block_sums(empty, empty, [empty], [empty], [0], None, scratch(0))
    known = Sums(count=3, parent_square=1.0, largest=2.0, fisher_square=4.0, fallback=1)
    assert found + known == known


def test_the_largest_difference_may_be_negative() -> None:
    merged, parent = torch.tensor([0.0, 1.0]), torch.tensor([5.0, 0.0])
    (found,) = block_sums(merged, None, [parent], [None], [2], None, scratch(2))
    assert found.largest == 5


def test_small_differences_between_large_weights_are_not_lost() -> None:
    # |a|^2 + |b|^2 - 2ab in float32 was wrong by 2.6 %: the difference comes first.
    parent = draw(10_000, torch.float32, 0) * 50
    merged = parent + draw(10_000, torch.float32, 1) * 1e-4
    (found,) = block_sums(merged, None, [parent], [None], [0], None, scratch(10_000))
    expected = ((merged.double() - parent.double()) ** 2).sum().item()
    assert found.difference_square == pytest.approx(expected, rel=1e-12)


def test_blocks_add_up_to_the_whole() -> None:
    merged, exact = draw(1000, torch.bfloat16, 0), draw(1000, torch.float32, 1)
    parent, fisher = draw(1000, torch.bfloat16, 2), draw(1000, torch.float32, 3).abs()
    cuts = [(0, 400), (400, 401), (401, 401), (401, 1000)]
    parts = [
        block_sums(
            merged[a:b], exact[a:b], [parent[a:b]], [fisher[a:b]], [b - a], 1, scratch(b - a)
        )[0]
        for a, b in cuts
    ]
    (whole,) = block_sums(merged, exact, [parent], [fisher], [1000], 4, scratch(1000))
    for name in asdict(whole).keys() - CONFLICT:
        value = getattr(whole, name)
        assert getattr(total(parts), name) == pytest.approx(value, rel=1e-12), name


def test_an_unknown_part_makes_the_sum_unknown_and_leaves_the_others() -> None:
    known = Sums(count=2, parent_square=1.0, update_survived=3.0, update_square=2.0)
    unknown = Sums(count=1, parent_square=1.0, update_survived=None)
    for parts in ([known, unknown], [unknown, known]):
        added = total(parts)
        assert (added.count, added.parent_square, added.update_square) == (3, 2.0, 2.0)
        assert added.update_survived is None


def test_a_tensor_that_knows_no_fallback_decides_none_of_its_entries_so() -> None:
    knows, does_not = Sums(count=2, fallback=1), Sums(count=3, fallback=None)
    for parts in ([knows, does_not, knows], [does_not, knows, knows]):
        assert total(parts).fallback == 2
    assert total([does_not, does_not]).fallback is None


def test_no_parts_are_zero() -> None:
    assert total([]) == Sums()
