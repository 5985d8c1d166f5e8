"""NaN and Inf in weights, found fast and named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_cl.errors import NonFiniteError

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint import Checkpoint
    from mergekit_cl.checkpoint.arrays import Array

_EXPONENTS = {
    "BF16": ("uint16", 0x7F80),
    "F16": ("uint16", 0x7C00),
    "F32": ("uint32", 0x7F800000),
    "F64": ("uint64", 0x7FF0000000000000),
}


def count_nonfinite(tensor: torch.Tensor) -> int:
    """How many entries are NaN or Inf.

    A finite sum says none many times faster than looking at every entry; only a sum that is not,
    or that overflows, makes it look.
    """
    import torch

    if tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16):
        # An exponent of ones; torch sums 16-bit types ten times slower than it compares them.
        ones = 0x7F80 if tensor.dtype == torch.bfloat16 else 0x7C00
        if not tensor.numel() or int(tensor.view(torch.int16).bitwise_and(ones).amax()) < ones:
            return 0
        return int((~tensor.isfinite()).count_nonzero())
    wide = None if tensor.dtype == torch.float64 else torch.float32
    if bool(torch.sum(tensor, dtype=wide).isfinite()):
        return 0
    return int((~tensor.isfinite()).count_nonzero())


def count_nonfinite_bits(array: Array, dtype: str) -> int:
    """How many entries of an array are NaN or Inf: those whose exponent is all ones.

    array: (n,) of a float type, of bfloat16 as its bits. dtype: as safetensors spells it.
    """
    import numpy as np

    unsigned, ones = _EXPONENTS[dtype]
    bits = array.view(unsigned) & np.asarray(ones, unsigned)
    return int(np.count_nonzero(bits == ones))


def nonfinite_input(place: str) -> NonFiniteError:
    """The error for NaN or Inf in a tensor that was given."""
    return NonFiniteError(
        "an input holds NaN or Inf",
        detail=place,
        hint="repair it, or give --allow-nonfinite to let them through a merge",
    )


def refuse_nonfinite(checkpoint: Checkpoint) -> None:
    """Raise NonFiniteError naming the first weight that holds NaN or Inf."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_float and (bad := count_nonfinite(checkpoint.read(name))):
            raise nonfinite_input(f"{checkpoint.path}: {name} ({bad} entries)")
