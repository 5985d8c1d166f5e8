"""How many entries of two blocks differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def count_changed(merged: torch.Tensor, parent: torch.Tensor) -> int:
    """Entries whose bits differ; of different dtypes those whose exact values do.

    merged, parent: (n,), any float dtype.
    """
    import torch

    if merged.dtype == parent.dtype:
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        whole = bits[merged.element_size()]
        return int(torch.ne(merged.view(whole), parent.view(whole)).count_nonzero())
    return int(torch.ne(merged.to(torch.float64), parent.to(torch.float64)).count_nonzero())
