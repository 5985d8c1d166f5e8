"""Into float64 and back in one pass over a block each; each returns a count of what is not finite.

What lies between is a kernel's own.
"""

from __future__ import annotations

import numpy as np

from mergekit_cl.native.elements import not_finite, rounded, widen


def widen_block(stored, out, count):
    """out = stored."""
    bad = np.uint32(0)
    for i in range(count):
        value = widen(stored[i])
        out[i] = np.float64(value)
        bad = np.uint32(bad | not_finite(value))
    return bad


def widen_with(stored, residual, out, count):
    """out = stored + residual."""
    bad = np.uint32(0)
    for i in range(count):
        value = widen(stored[i])
        out[i] = np.float64(value) + np.float64(residual[i])
        bad = np.uint32(bad | not_finite(value) | not_finite(residual[i]))
    return bad


def round_block(exact, out, count):
    """out = exact rounded."""
    bad = np.uint32(0)
    for i in range(count):
        found = rounded(exact[i], out[i])
        out[i] = found
        bad = np.uint32(bad | not_finite(widen(found)))
    return bad
