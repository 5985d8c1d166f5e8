"""A published 16-bit merge is the float64 result, rounded once, in all but one entry in 10,000."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from making import by_fisher, linear, merge, write_model, write_sidecar

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.merge.rounding import round_into

SIZE = 2**18
CASES = [
    pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str),
    pytest.mark.parametrize("count", [2, 3, 5, 8]),
    pytest.mark.parametrize("spread", [0.05, 1.0], ids=["fine-tunes", "strangers"]),
]


def every_case(test: Any) -> Any:
    for mark in CASES:
        test = mark(test)
    return test


def write_models(
    folder: Path, count: int, dtype: torch.dtype, spread: float
) -> tuple[list[Path], list[torch.Tensor], list[float]]:
    """Fine-tunes of one base, 0.02 wide and each moved by `spread` of that; 1 makes strangers.

    The weights come from a continuous distribution: a "nice" one such as 1/2 puts many exact
    results on ties of the 16-bit grid, where the last bit of any arithmetic decides and counting
    is meaningless.
    """
    generator = torch.Generator().manual_seed(count)

    def draw() -> torch.Tensor:
        return torch.randn(SIZE, generator=generator, dtype=torch.float64) * 0.02

    base = draw()
    values = [(draw() if spread == 1 else base + spread * draw()).to(dtype) for _ in range(count)]
    weights = (torch.rand(count, generator=generator, dtype=torch.float64) + 0.1).tolist()
    paths = [write_model(folder / str(k), {"w": value}) for k, value in enumerate(values)]
    return paths, values, weights


def differing(output: Path, exact: torch.Tensor, dtype: torch.dtype) -> float:
    """The share of entries that are not the exact result rounded once."""
    rounded = torch.empty(exact.shape, dtype=dtype)
    round_into(rounded, exact)  # proved against fractions in tests/merge/test_rounding.py
    with open_checkpoint(output) as merged:
        return float((merged.tensor("w") != rounded).double().mean())


def weighted(shares: Sequence[Any], values: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum(s * x.double() for s, x in zip(shares, values, strict=True)) / sum(shares)


@every_case
def test_a_linear_merge(tmp_path: Path, count: int, dtype: torch.dtype, spread: float) -> None:
    paths, values, weights = write_models(tmp_path, count, dtype, spread)
    merge(linear(paths, weights=weights), tmp_path / "merged", report=False)
    assert differing(tmp_path / "merged", weighted(weights, values), dtype) <= 1e-4


@every_case
def test_a_fisher_merge(tmp_path: Path, count: int, dtype: torch.dtype, spread: float) -> None:
    paths, values, weights = write_models(tmp_path, count, dtype, spread)
    generator = torch.Generator().manual_seed(count)
    shares = []
    for path, weight in zip(paths, weights, strict=True):
        fisher = (torch.rand(SIZE, generator=generator) * 20 - 30).exp()
        write_sidecar(path, {"w": fisher}, digests=False)
        mean = fisher.double().mean()
        shares.append(weight * fisher.double().clamp(min=1e-6 * mean) / mean)
    merge(by_fisher(paths, weights=weights), tmp_path / "merged", report=False)
    assert differing(tmp_path / "merged", weighted(shares, values), dtype) <= 1e-4
