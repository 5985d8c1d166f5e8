"""How far inputs pull a weight in opposite directions from a base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SCRATCH_BUFFERS = 4


def conflict_sums(
    inputs: Sequence[torch.Tensor], base: torch.Tensor, scratch: Sequence[torch.Tensor]
) -> tuple[float, float]:
    """`sum_i (sum_k |d_ki| - |sum_k d_ki|)` and `sum_i sum_k |d_ki|`, with d_k = input k - base.

    inputs, base: (n,), any float dtype. scratch: float64 buffers of (n,). The first is what is lost
    where differences cancel: their ratio is 0 where all inputs moved the same way, 1 where they
    cancel altogether.
    """
    difference, together, apart, origin = scratch[:SCRATCH_BUFFERS]
    origin.copy_(base)
    together.zero_()
    apart.zero_()
    for tensor in inputs:
        difference.copy_(tensor)
        difference.sub_(origin)
        together.add_(difference)
        apart.add_(difference.abs_())
    whole = float(apart.sum())
    return whole - float(together.abs_().sum()), whole
