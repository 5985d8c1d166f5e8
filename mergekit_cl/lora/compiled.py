"""`kernels.add_panel` compiled for this processor: the same sums in the same order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mergekit_cl.lora.kernels import Panel, pieces
from mergekit_cl.native.kernel import Kernel

if TYPE_CHECKING:
    import torch

add_product = Kernel("product", "add_product")

TILE = 512
"""Columns at a time: their sums, and some rows of the right factor, fit a core's first cache."""


def add_panel(block: torch.Tensor, start: int, panel: Panel) -> None:
    """block += left @ right, as far as the panel's window lies in the block, one on the CPU."""
    flat, left, right = block.numpy(), panel.left.numpy(), panel.right.numpy()
    rank, width = right.shape
    scratch = np.empty((2, TILE))
    for piece in pieces(panel.window, start, start + block.numel()):
        rows = left[slice(*piece.rows)]
        part = flat[slice(*piece.within)]
        sizes = len(rows), rank, width, *piece.columns
        add_product(part, rows, right, scratch[0], scratch[1], *sizes, TILE)
