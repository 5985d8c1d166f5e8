"""Typed tensors carved out of a buffer of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ALIGNMENT = 256
"""Bytes: what a card reads at once; enough for every dtype."""


class Carving:
    """Hands out a buffer piece by piece, from its beginning on."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self._buffer = buffer
        self.used = 0

    def take(self, dtype: torch.dtype, count: int) -> torch.Tensor:
        """(count,) of a dtype; raises ValueError where the buffer is too small."""
        nbytes = count * dtype.itemsize
        if self.used + nbytes > self._buffer.numel():
            raise ValueError(f"{nbytes} bytes after {self.used} of {self._buffer.numel()}")
        piece = self._buffer[self.used : self.used + nbytes].view(dtype)
        self.used += aligned(nbytes)
        return piece


def aligned(nbytes: int) -> int:
    """Bytes that a piece takes."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
