"""One stored element in compiled code: widened, rounded, compared.

bfloat16 is uint16 here, float16 int16: that tells them apart.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

EXPONENT = np.int64(0x7FF0000000000000)
TO_BFLOAT16 = 1.5 * 2.0**45
LEAST_BFLOAT16 = 2.0**-126
TO_FLOAT16 = 1.5 * 2.0**42
LEAST_FLOAT16 = 2.0**-14
LARGEST_FLOAT16 = 65504.0


def _reinterpret(source, target):
    """A function that reads the bits of one type as another."""

    @intrinsic
    def same_bits(typing, value):
        def generate(context, builder, signature, values):
            return builder.bitcast(values[0], context.get_value_type(target))

        return target(source), generate

    return same_bits


float_of_bits = _reinterpret(types.uint32, types.float32)
bits_of_float = _reinterpret(types.float32, types.uint32)
double_of_bits = _reinterpret(types.int64, types.float64)
bits_of_double = _reinterpret(types.float64, types.int64)


@njit
def _from_float16(value):
    bits = np.uint32(value)
    size = bits & np.uint32(0x7FFF)
    bias = np.uint32(224 << 23) if size >= np.uint32(0x7C00) else np.uint32(112 << 23)
    normal = bits_of_float(float_of_bits((size << np.uint32(13)) + bias))
    tiny = bits_of_float(np.float32(np.int32(size)) * np.float32(2.0**-24))
    found = normal if size >= np.uint32(0x400) else tiny
    return float_of_bits(found | ((bits & np.uint32(0x8000)) << np.uint32(16)))


def widen(value):
    """A stored element as float32, one of float64 as it is."""
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(value):
    if value == types.uint16:
        return lambda value: float_of_bits(np.uint32(value) << np.uint32(16))
    if value == types.int16:
        return lambda value: _from_float16(value)
    return lambda value: value


def narrow(value, like):
    """A finite float32 rounded to nearest even, as an element like `like`."""
    raise NotImplementedError


@overload(narrow, inline="always")
def _narrow(value, like):
    if like == types.uint16:

        def rounded(value, like):
            bits = bits_of_float(value)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

        return rounded
    return lambda value, like: value


def not_finite(value):
    """1 for a NaN or an infinity of float32 or float64."""
    raise NotImplementedError


@overload(not_finite, inline="always")
def _not_finite(value):
    if value == types.float64:
        return lambda value: np.uint32((bits_of_double(value) & EXPONENT) == EXPONENT)
    exponent = np.uint32(0x7F800000)
    return lambda value: np.uint32((bits_of_float(value) & exponent) == exponent)


def like(value, other):
    """A float32 or float64 in the type of another, which holds it."""
    raise NotImplementedError


@overload(like, inline="always")
def _like(value, other):
    if value == types.float32 and other == types.float64:
        return lambda value, other: np.float64(value)
    return lambda value, other: value


@njit(inline="always")
def weighed(fisher, undecided, weight, factor, floor):
    """What an input weighs in a Fisher-weighted mean: its own weight where nobody measured."""
    return weight if undecided else (fisher if fisher > floor else floor) * factor


def rounded(value, like):
    """A float64 rounded to nearest even, as an element like `like`.

    merge/rounding.py's rounding, bit for bit: a float64 that is added to 1.5 * 2^52 units of the
    narrow type's last place, and of which that is taken away again, is rounded to nearest even in
    one step (subnormals too, whose unit is the least normal number's).
    """
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


def nearest(value, like):
    """A finite float32 or float64 rounded to nearest even, as an element like `like`."""
    raise NotImplementedError


@overload(nearest, inline="always")
def _nearest(value, like):
    if value == types.float32 and like != types.int16:
        return lambda value, like: narrow(value, like)
    return lambda value, like: rounded(np.float64(value), like)


def differ(one, other):
    """Whether two stored elements differ: in their bits if of one dtype, in value if not."""
    raise NotImplementedError


@overload(differ, inline="always")
def _differ(one, other):
    if one != other:
        return lambda one, other: widen(one) != widen(other)
    if one in (types.uint16, types.int16):
        return lambda one, other: one != other
    return lambda one, other: bits_of_float(one) != bits_of_float(other)
