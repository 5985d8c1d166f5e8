"""Into float64 and back in one pass over a block each, compiled for this processor."""

from __future__ import annotations

from mergekit_cl.native.kernel import Array, Kernel

widen_block = Kernel("wide", "widen_block")
widen_with = Kernel("wide", "widen_with")
round_block = Kernel("wide", "round_block")


def widen_into(stored: Array, residual: Array | None, out: Array) -> bool:
    """out = stored, plus its float32 residual if there is one; whether all of it is finite.

    stored: (n,) bfloat16, float16 or float32. out: (n,) float64.
    """
    if residual is None:
        return not widen_block(stored, out, len(out))
    return not widen_with(stored, residual, out, len(out))


def round_into(out: Array, exact: Array) -> bool:
    """Round float64 to the dtype of `out` once, to nearest even; whether all of it is finite."""
    return not round_block(exact, out, len(out))
