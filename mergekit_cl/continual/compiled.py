"""`ewc.add_penalty_gradient` and `proximal.proximal_step` in one pass over weights on the CPU.

The results are those of the formulas there, which take one pass for each operation: to the bit, but
for the roots of Adam's moments, of which torch's are not always the nearest float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mergekit_cl.checkpoint.arrays import as_array
from mergekit_cl.native.kernel import Array, Kernel, can_compile

DTYPES = (torch.bfloat16, torch.float32)

_pull = Kernel("holding", "pull")
_settle = Kernel("holding", "settle")
_settle_by_moment = Kernel("holding", "settle_by_moment")

Columns = Sequence[Sequence[Tensor]]
"""One list per place in a formula, of pieces of equal shapes across lists."""


def are_compiled(columns: Columns) -> bool:
    """Whether there is compiled code for tensors like these, and a compiler."""
    tensors = [tensor for column in columns for tensor in column]
    there = all(t.device.type == "cpu" and t.is_contiguous() for t in tensors)
    return there and all(t.dtype in DTYPES for t in tensors) and can_compile()


def add_pull(columns: Columns, strength: float) -> None:
    """gradients += strength F (theta - anchor); columns: theta, F, anchor, gradient."""
    for pieces in zip(*columns, strict=True):
        _pull(*map(_flat, pieces), np.float32(strength), pieces[0].numel())


def settle(columns: Columns, factor: float, correction: float, eps: float) -> None:
    """theta = (theta + s anchor) / (1 + s), s as of `proximal.Scaling`.

    columns: theta, F, anchor and, where there are any, second moments.
    """
    scaling = np.float32(correction), np.float32(eps)
    for pieces in zip(*columns, strict=True):
        arrays = [_flat(piece) for piece in pieces]
        if len(arrays) == 4:
            _settle_by_moment(*arrays, np.float32(factor), *scaling, len(arrays[0]))
        else:
            _settle(*arrays, np.float32(factor), len(arrays[0]))


def _flat(tensor: Tensor) -> Array:
    return as_array(tensor.view(-1))
