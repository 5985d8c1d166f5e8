"""Sign conflict against float64 numpy, and at its two ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mergekit_cl.divergence.conflict import SCRATCH_BUFFERS, conflict_sums
from mergekit_cl.divergence.metrics import metrics
from mergekit_cl.divergence.sums import Sums, total

BASE = torch.randn(3000, generator=torch.Generator().manual_seed(0))


def scratch(size: int) -> list[torch.Tensor]:
    return [torch.full((size,), math.nan, dtype=torch.float64) for _ in range(SCRATCH_BUFFERS)]


def moved(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (BASE + torch.randn(3000, generator=generator) * 0.1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_sums_are_those_of_float64_numpy(dtype: torch.dtype, count: int) -> None:
    inputs = [moved(seed, dtype) for seed in range(1, count + 1)]
    base = BASE.to(dtype)
    found = conflict_sums(inputs, base, scratch(3000))
    d = np.stack([tensor.double().numpy() - base.double().numpy() for tensor in inputs])
    apart = math.fsum(np.abs(d).sum(axis=0))
    assert found == pytest.approx((apart - math.fsum(np.abs(d.sum(axis=0))), apart), rel=1e-9)


def ratio(parts: list[tuple[float, float]]) -> float | None:
    summed = total([Sums(count=1, conflict=a, conflict_whole=b) for a, b in parts])
    return metrics(summed)["sign_conflict"]


def test_opposite_moves_conflict_wholly_and_equal_moves_not_at_all() -> None:
    one = moved(1, torch.float64)
    other = 2 * BASE.double() - one
    assert ratio([conflict_sums([one, other], BASE, scratch(3000))]) == pytest.approx(1, abs=1e-12)
    assert ratio([conflict_sums([one, one], BASE, scratch(3000))]) == pytest.approx(0, abs=1e-12)


def test_blocks_add_up_to_the_whole() -> None:
    inputs = [moved(1), moved(2)]
    parts = [
        conflict_sums([t[a:b] for t in inputs], BASE[a:b], scratch(b - a))
        for a, b in ((0, 1000), (1000, 1000), (1000, 3000))
    ]
    whole = ratio([conflict_sums(inputs, BASE, scratch(3000))])
    assert ratio(parts) == pytest.approx(whole, rel=1e-12)


def test_where_nothing_moved_and_without_a_base_it_is_undefined() -> None:
    assert ratio([conflict_sums([BASE, BASE], BASE, scratch(3000))]) is None
    assert metrics(Sums(count=3))["sign_conflict"] is None
    known = Sums(count=3, conflict=1.0, conflict_whole=4.0)
    assert metrics(known + Sums(count=3))["sign_conflict"] == 0.25
