"""What every merge formula looks like from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Merged(NamedTuple):
    """One block's result before it is rounded.

    fallback: how many entries a fallback decided, None where the formula has none; of operands on
    a GPU a tensor of one number that is still being computed.
    """

    exact: torch.Tensor
    fallback: int | torch.Tensor | None = None


Kernel = Callable[[Sequence["torch.Tensor"], Sequence["torch.Tensor"]], Merged]
"""(operands, scratch) -> Merged: all flat, of one length and one dtype, on one device."""

KernelAt = Callable[[int], Kernel]
"""Element of the tensor -> the kernel for operands that begin there."""

SCRATCH_BUFFERS = 5
"""Buffers a kernel may use."""


def can_be_asked(tensor: torch.Tensor) -> bool:
    """Whether reading one value costs nothing: a GPU would have to finish all its work first."""
    return tensor.device.type == "cpu"
