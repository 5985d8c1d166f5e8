"""Weighted differences of any number of inputs, one pass for each: merge/linear.py.

The same operations in the same order as there, in the type of `total` (float32 or float64), each
rounded on its own, so that the bits are the same. Each returns a count of what is not finite.
"""

from __future__ import annotations

import numpy as np

from mergekit_cl.native.elements import like, nearest, not_finite, widen


def begin_differences(anchor, x, weight, total, count):
    """total = weight * (anchor - x)."""
    bad = np.uint32(0)
    for i in range(count):
        one = widen(anchor[i])
        other = widen(x[i])
        total[i] = (like(one, total[i]) - like(other, total[i])) * weight
        bad = np.uint32(bad | not_finite(one) | not_finite(other))
    return bad


def add_difference(anchor, x, weight, total, count):
    """total += weight * (anchor - x)."""
    bad = np.uint32(0)
    for i in range(count):
        other = widen(x[i])
        total[i] += (like(widen(anchor[i]), total[i]) - like(other, total[i])) * weight
        bad = np.uint32(bad | not_finite(other))
    return bad


def end_differences(anchor, total, lost_zero, out, exact, count):
    """exact = anchor - total, and that rounded into `out`.

    lost_zero: -0, which changes nothing, or +0 where a weight is negative: a difference of +0 times
    that is -0, which would lose a -0 of the anchor.
    """
    bad = np.uint32(0)
    for i in range(count):
        result = like(widen(anchor[i]), total[i]) - (total[i] + lost_zero)
        stored = nearest(result, out[i])
        exact[i] = result
        out[i] = stored
        bad = np.uint32(bad | not_finite(widen(stored)))
    return bad


def look(stored, count):
    """Look at something that is only read for what is reported."""
    bad = np.uint32(0)
    for i in range(count):
        bad = np.uint32(bad | not_finite(widen(stored[i])))
    return bad
