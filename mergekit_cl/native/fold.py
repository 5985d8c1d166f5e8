"""Fisher-weighted means of any number of inputs, one pass for each: merge/fisher.py.

The same operations in the same order as there with the linear fallback, in the type of `mean`
(float32 or float64), each rounded on its own, so that the bits are the same. numbers: (tensors, 3):
weight, factor and floor of an input for every tensor between `bounds`. Each returns a count of what
is not finite.
"""

from __future__ import annotations

import numpy as np

from mergekit_cl.native.elements import like, nearest, not_finite, weighed, widen


def add_fisher(fisher, some, count):
    """some += one input's Fisher: where the sum is 0 nobody measured an entry."""
    bad = np.uint32(0)
    for i in range(count):
        value = widen(fisher[i])
        some[i] += like(value, some[i])
        bad = np.uint32(bad | not_finite(value))
    return bad


def begin_mean(x, fisher, some, numbers, mean, total, bounds, tensors):
    """The mean of one input, and its weights."""
    bad = np.uint32(0)
    for tensor in range(tensors):
        at = 3 * tensor
        weight, factor, floor = numbers[at], numbers[at + 1], numbers[at + 2]
        for i in range(bounds[tensor], bounds[tensor + 1]):
            value = widen(x[i])
            f = like(widen(fisher[i]), mean[i])
            mean[i] = like(value, mean[i])
            total[i] = weighed(f, some[i] == 0, weight, factor, floor)
            bad = np.uint32(bad | not_finite(value))
    return bad


def fold(x, fisher, some, numbers, mean, total, bounds, tensors):
    """mean += t (x - mean), t the share of this input in the weights so far."""
    bad = np.uint32(0)
    for tensor in range(tensors):
        at = 3 * tensor
        weight, factor, floor = numbers[at], numbers[at + 1], numbers[at + 2]
        for i in range(bounds[tensor], bounds[tensor + 1]):
            value = widen(x[i])
            f = like(widen(fisher[i]), mean[i])
            gain = weighed(f, some[i] == 0, weight, factor, floor)
            held = total[i]
            grown = held + gain
            divisor = grown if grown != 0 else like(np.float32(1.0), mean[i])
            new = gain / divisor
            old = held / divisor
            one = like(value, mean[i])
            before = mean[i]
            near = before if old > new else one
            far = one if old > new else before
            mean[i] = near - (new if new < old else old) * (near - far)
            total[i] = grown
            bad = np.uint32(bad | not_finite(value) | not_finite(grown))
    return bad


def end_mean(some, mean, out, decided, bounds, tensors):
    """Round the mean into `out`; `decided` counts of each tensor the entries without any Fisher."""
    bad = np.uint32(0)
    for tensor in range(tensors):
        fallback = np.uint32(0)
        for i in range(bounds[tensor], bounds[tensor + 1]):
            stored = nearest(mean[i], out[i])
            out[i] = stored
            fallback = np.uint32(fallback + (some[i] == 0))
            bad = np.uint32(bad | not_finite(widen(stored)))
        decided[tensor] = fallback
    return bad
