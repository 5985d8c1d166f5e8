"""Into float64 and back in one pass over a block each, compiled for this processor.

What lies between is a kernel's own. Rounding is merge/rounding.py's, bit for bit: a float64 that is
added to 1.5 * 2^52 units of the narrow type's last place, and of which that is taken away again, is
rounded to nearest even in one step (subnormals too, whose unit is the least normal number's).
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from mergekit_cl.merge.compiled import (
    Array,
    bits_of_double,
    bits_of_float,
    double_of_bits,
    not_finite,
    widen,
)

EXPONENT = np.int64(0x7FF0000000000000)
TO_BFLOAT16 = 1.5 * 2.0**45
LEAST_BFLOAT16 = 2.0**-126
TO_FLOAT16 = 1.5 * 2.0**42
LEAST_FLOAT16 = 2.0**-14
LARGEST_FLOAT16 = 65504.0


def widen_into(stored: Array, residual: Array | None, out: Array) -> bool:
    """out = stored, plus its float32 residual if there is one; whether all of it is finite.

    stored: (n,) bfloat16, float16 or float32. out: (n,) float64.
    """
    if residual is None:
        return not widen_block(stored, out)
    return not widen_with(stored, residual, out)


def round_into(out: Array, exact: Array) -> bool:
    """Round float64 to the dtype of `out` once, to nearest even; whether all of it is finite."""
    return not round_block(exact, out)


def rounded(value, like):
    """A float64 rounded to nearest even, as an element like `like`, in compiled code."""
    raise NotImplementedError


@njit(inline="always")
def _to_unit(value, least, scale):
    power = double_of_bits(bits_of_double(value) & EXPONENT)
    shift = (power if power > least else least) * scale
    return (value + shift) - shift


@njit(inline="always")
def _sign(value):
    return np.uint32(np.uint64(bits_of_double(value)) >> np.uint64(63))


@overload(rounded, inline="always")
def _rounded(value, like):
    if like == types.uint16:

        def to_bfloat16(value, like):
            bits = bits_of_float(np.float32(_to_unit(value, LEAST_BFLOAT16, TO_BFLOAT16)))
            sign = _sign(value) << np.uint32(15)  # what rounds to 0 keeps its sign
            return np.uint16((bits >> np.uint32(16)) & np.uint32(0x7FFF) | sign)

        return to_bfloat16
    if like == types.int16:

        def to_float16(value, like):
            near = np.float32(abs(_to_unit(value, LEAST_FLOAT16, TO_FLOAT16)))
            normal = (bits_of_float(near) >> np.uint32(13)) - np.uint32(112 << 10)
            tiny = np.uint32(near * np.float32(2.0**24))
            found = normal if near >= np.float32(LEAST_FLOAT16) else tiny
            found = found if near <= np.float32(LARGEST_FLOAT16) else np.uint32(0x7C00)
            return np.int16(found | (_sign(value) << np.uint32(15)))

        return to_float16
    return lambda value, like: np.float32(value)


@njit(nogil=True, cache=True)
def widen_block(stored, out):
    """out = stored; a count of what is not finite."""
    bad = np.uint32(0)
    for i in range(out.shape[0]):
        value = widen(stored[i])
        out[i] = np.float64(value)
        bad = np.uint32(bad | not_finite(value))
    return bad


@njit(nogil=True, cache=True)
def widen_with(stored, residual, out):
    """out = stored + residual; a count of what is not finite."""
    bad = np.uint32(0)
    for i in range(out.shape[0]):
        value = widen(stored[i])
        out[i] = np.float64(value) + np.float64(residual[i])
        bad = np.uint32(bad | not_finite(value) | not_finite(residual[i]))
    return bad


@njit(nogil=True, cache=True)
def round_block(exact, out):
    """out = exact rounded; a count of what is not finite."""
    bad = np.uint32(0)
    for i in range(out.shape[0]):
        found = rounded(exact[i], out[i])
        out[i] = found
        bad = np.uint32(bad | not_finite(widen(found)))
    return bad
