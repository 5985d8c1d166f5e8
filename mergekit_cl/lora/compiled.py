"""`kernels.add_panel` compiled for this processor: the same sums in the same order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from mergekit_cl.lora.kernels import Panel, pieces

if TYPE_CHECKING:
    import torch

TILE = 512
"""Columns at a time: their sums, and some rows of the right factor, fit a core's first cache."""


def add_panel(block: torch.Tensor, start: int, panel: Panel) -> None:
    """block += left @ right, as far as the panel's window lies in the block, one on the CPU."""
    flat, left, right = block.numpy(), panel.left.numpy(), panel.right.numpy()
    for piece in pieces(panel.window, start, start + block.numel()):
        rows, columns = slice(*piece.rows), piece.columns
        add_product(flat[slice(*piece.within)], columns[0], columns[1], left[rows], right)


@njit(nogil=True, cache=True)
def add_product(block, first, end, left, right):
    """block, (rows, end - first) flat, += left @ right[:, first:end].

    Each sum goes through the rank from 0 on, every product and every sum rounded on its own, and is
    then added to the block. Two rows at a time, which read a right factor once.
    """
    rows, rank = left.shape
    whole = rank - rank % 4
    stride = end - first
    sums = np.empty((2, TILE))
    for tile in range(first, end, TILE):
        width = min(TILE, end - tile)
        upper, lower = sums[0, :width], sums[1, :width]
        for row in range(0, rows, 2):
            a, b = left[row], left[min(row + 1, rows - 1)]
            upper[:] = -0.0
            lower[:] = -0.0
            for k in range(0, whole, 4):
                a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
                b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
                r0, r1 = right[k, tile : tile + width], right[k + 1, tile : tile + width]
                r2, r3 = right[k + 2, tile : tile + width], right[k + 3, tile : tile + width]
                for j in range(width):
                    x0, x1, x2, x3 = r0[j], r1[j], r2[j], r3[j]
                    upper[j] = (((upper[j] + a0 * x0) + a1 * x1) + a2 * x2) + a3 * x3
                    lower[j] = (((lower[j] + b0 * x0) + b1 * x1) + b2 * x2) + b3 * x3
            for k in range(whole, rank):
                r0 = right[k, tile : tile + width]
                for j in range(width):
                    upper[j] += a[k] * r0[j]
                    lower[j] += b[k] * r0[j]
            at = row * stride + tile - first
            out = block[at : at + width]
            for j in range(width):
                out[j] += upper[j]
            if row + 1 < rows:
                out = block[at + stride : at + stride + width]
                for j in range(width):
                    out[j] += lower[j]
