"""The best low-rank factors of a difference of weights: truncated SVD."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

EXACT_SIDE = 1024
"""A matrix of which no side is larger is decomposed exactly; a larger one by random projection."""

OVERSAMPLE = 16
POWER_STEPS = 4
FIRST_SKETCH = 64


NORM_STEP = 2**20
"""Elements whose squares are summed at once, in float64."""


class Factors(NamedTuple):
    """difference ~ up @ down: up (out, r), down (r, in). error, norm: Frobenius."""

    down: torch.Tensor
    up: torch.Tensor
    error: float
    norm: float


def factors_of(
    difference: torch.Tensor,
    *,
    rank: int | None,
    energy: float | None,
    dtype: torch.dtype | None = None,
) -> Factors:
    """Truncated SVD of an (out, in) matrix, in its own dtype and place; overwrites the matrix.

    dtype: of the factors; float32 if None. rank: of the factors, at most. energy: the least rank
    that keeps this share of the squared singular values. The error is that of the factors as they
    are returned, which is on the CPU. Source: Halko, Martinsson and Tropp 2011, algorithm 4.4, with
    a fixed seed, for large matrices.
    """
    import torch

    norm = frobenius(difference)
    left, values, right = _svd(difference, rank, energy, norm)
    kept = _rank(values, rank, energy, norm)
    root = values[:kept].sqrt()
    stored = dtype or torch.float32
    up = (left[:, :kept] * root).to(stored).contiguous()
    down = (root[:, None] * right[:kept]).to(stored).contiguous()
    difference.addmm_(up.to(difference.dtype), down.to(difference.dtype), alpha=-1)
    return Factors(down.cpu(), up.cpu(), frobenius(difference), norm)


def frobenius(matrix: torch.Tensor) -> float:
    """Its norm, summed in float64 without a copy of all of it."""
    flat = matrix.reshape(-1)
    steps = range(0, flat.numel(), NORM_STEP)
    squares = (float(flat[at : at + NORM_STEP].double().square().sum()) for at in steps)
    return math.sqrt(math.fsum(squares))


def extract_bytes(rows: int, columns: int, item: int, rank: int | None) -> int:
    """Memory that the factors of one difference take, where their rank is known before."""
    width = min(rows, columns) if rank is None else min(rank + OVERSAMPLE, rows, columns)
    return item * (2 * rows * columns + 4 * width * (rows + columns)) + 2 * 8 * NORM_STEP


def _svd(
    matrix: torch.Tensor, rank: int | None, energy: float | None, norm: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left vectors, values and right vectors: all, or as many as are needed."""
    import torch

    full = min(matrix.shape)
    if max(matrix.shape) <= EXACT_SIDE:
        return torch.linalg.svd(matrix, full_matrices=False)  # type: ignore[no-any-return]
    width = FIRST_SKETCH if rank is None else rank + OVERSAMPLE
    while True:
        width = min(width, full)
        found = _projected(matrix, width) if 2 * width < full else _exact(matrix)
        # The last values of a sketch are the least certain: they only show that it was wide enough.
        sure = found[1][: len(found[1]) - OVERSAMPLE] if 2 * width < full else found[1]
        if rank is not None or float(sure.double().square().sum()) >= (energy or 0) * norm**2:
            return found
        if 2 * width >= full:
            return found
        width *= 2


def _exact(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    return torch.linalg.svd(matrix, full_matrices=False)  # type: ignore[no-any-return]


def _projected(matrix: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    seeded = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], width, generator=seeded, dtype=matrix.dtype)
    start = start.to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(POWER_STEPS):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left, values, right


def _rank(values: torch.Tensor, rank: int | None, energy: float | None, norm: float) -> int:
    if rank is not None:
        return min(rank, len(values))
    reached = values.double().square().cumsum(0) >= (energy or 0) * norm**2
    found = int(reached.nonzero()[0]) + 1 if bool(reached.any()) else len(values)
    return max(found, 1)
