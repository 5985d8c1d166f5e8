"""Merges of two inputs in one pass over a block.

The same float32 operations in the same order as merge/linear.py and merge/fisher.py, each rounded
on its own (no contraction, no reassociation), so that the bits are the same. Each returns a count
of what is not finite.

Counts are cast back to 32 bits wherever they are added to: numba widens sums of integers to 64, and
a loop with those takes half as many entries at a time.
"""

from __future__ import annotations

import numpy as np

from mergekit_cl.native.elements import narrow, not_finite, weighed, widen


def mean_of_pair(near, far, weight, lost_zero, out, exact, count):
    """near - weight * (near - far), rounded into `out`."""
    bad = np.uint32(0)
    for i in range(count):
        x = widen(near[i])
        y = widen(far[i])
        result = x - (weight * (x - y) + lost_zero)
        stored = narrow(result, out[i])
        exact[i] = result
        out[i] = stored
        bad = np.uint32(bad | not_finite(x) | not_finite(y) | not_finite(widen(stored)))
    return bad


def fisher_of_pairs(a, b, fisher_a, fisher_b, numbers, out, exact, decided, bounds, tensors):
    """merge/fisher.py for two inputs and the linear fallback, for every tensor between `bounds`.

    numbers: (tensors, 6): weight, factor and floor of each input. Fills `decided`, the entries the
    fallback decided of each tensor.
    """
    bad = np.uint32(0)
    for tensor in range(tensors):
        at = 6 * tensor
        weight_a, factor_a, floor_a = numbers[at], numbers[at + 1], numbers[at + 2]
        weight_b, factor_b, floor_b = numbers[at + 3], numbers[at + 4], numbers[at + 5]
        fallback = np.uint32(0)
        zero = np.float32(0.0)
        for i in range(bounds[tensor], bounds[tensor + 1]):
            x = widen(a[i])
            y = widen(b[i])
            fx = widen(fisher_a[i])
            fy = widen(fisher_b[i])
            undecided = fx + fy == zero
            gx = weighed(fx, undecided, weight_a, factor_a, floor_a)
            gy = weighed(fy, undecided, weight_b, factor_b, floor_b)
            grown = gx + gy
            divisor = grown if grown != zero else np.float32(1.0)
            tx = gx / divisor
            ty = gy / divisor
            near = x if tx > ty else y
            far = y if tx > ty else x
            result = near - (ty if ty < tx else tx) * (near - far)
            stored = narrow(result, out[i])
            exact[i] = result
            out[i] = stored
            fallback = np.uint32(fallback + undecided)
            odd = not_finite(x) | not_finite(y) | not_finite(widen(stored))
            bad = np.uint32(bad | odd | not_finite(fx) | not_finite(fy) | not_finite(grown))
        decided[tensor] = fallback
    return bad
