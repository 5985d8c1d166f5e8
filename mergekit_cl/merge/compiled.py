"""Merges of two inputs in one pass over a block, compiled for this processor.

The same float32 operations in the same order as merge/linear.py and merge/fisher.py, each rounded
on its own (no contraction, no reassociation), so that the bits are the same. A block in which
anything is not finite is only reported: those formulas say what becomes of it.

Counts are cast back to 32 bits wherever they are added to: numba widens sums of integers to 64, and
a loop with those takes half as many entries at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numba import njit, types
from numba.extending import intrinsic, overload

from mergekit_cl.merge.formula import Formula, PairFisher, PairMean

Array: TypeAlias = np.ndarray[Any, Any]
"""A flat block: bfloat16 as its bits in uint16, float16 in int16, others as they are."""


class Compiled(NamedTuple):
    """finite: whether every operand and result was.

    fallback: entries it decided, for each tensor of the block; None where there is no fallback.
    """

    finite: bool
    fallback: list[int] | None


PairKernel = Callable[[Sequence[Array], Array, Array, Array], Compiled]
"""(stored operands, bounds, out, exact) -> Compiled; fills `out` (rounded) and `exact` (float32).

bounds: where in the block each tensor begins, and its end; (tensors + 1,) int64.
"""


def pair_kernel(formulas: Sequence[Formula]) -> PairKernel:
    """The compiled form of formulas of one kind: one for each tensor of a block."""
    means = [one for one in formulas if isinstance(one, PairMean)]
    if means:
        (formula,) = set(means)
        return _pair_mean(formula)
    return _pair_fisher([one for one in formulas if isinstance(one, PairFisher)])


def _pair_mean(formula: PairMean) -> PairKernel:
    first, second = formula.weights
    # As weighted_mean: from the input of larger weight, the last of equals.
    near, far, weight = (0, 1, second) if first > second else (1, 0, first)
    rounded = np.float32(weight)
    # A difference of +0 times a negative weight is -0, which would lose a -0.
    lost_zero = np.float32(0.0) if min(formula.weights) < 0 else np.float32(-0.0)

    def run(stored: Sequence[Array], bounds: Array, out: Array, exact: Array) -> Compiled:
        bad = mean_of_pair(stored[near], stored[far], rounded, lost_zero, out, exact)
        return Compiled(not bad, None)

    return run


def _pair_fisher(formulas: Sequence[PairFisher]) -> PairKernel:
    numbers = np.asarray(
        [
            [number for s in one.scales for number in (s.weight, s.factor, s.floor)]
            for one in formulas
        ]
    )
    with np.errstate(over="ignore"):  # an infinite factor makes results that are not finite
        rounded = numbers.astype(np.float32)
    decided = np.empty(len(formulas), np.int64)

    def run(stored: Sequence[Array], bounds: Array, out: Array, exact: Array) -> Compiled:
        bad = fisher_of_pairs(*stored[:4], rounded, bounds, out, exact, decided)
        return Compiled(not bad, decided.tolist())

    return run


def _reinterpret(source, target):
    """A function for compiled code that reads the bits of one type as another."""

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
    """A stored element as float32, one of float64 as it is, in compiled code."""
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(value):
    if value == types.uint16:
        return lambda value: float_of_bits(np.uint32(value) << np.uint32(16))
    if value == types.int16:
        return lambda value: _from_float16(value)
    return lambda value: value


def narrow(value, like):
    """A finite float32 rounded to nearest even, as an element like `like`, in compiled code."""
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


@njit(inline="always")
def not_finite(value):
    """1 for a NaN or an infinity of float32, in compiled code."""
    exponent = np.uint32(0x7F800000)
    return np.uint32((bits_of_float(value) & exponent) == exponent)


@njit(nogil=True, cache=True)
def mean_of_pair(near, far, weight, lost_zero, out, exact):
    """near - weight * (near - far), rounded into `out`; returns a count of what is not finite."""
    bad = np.uint32(0)
    for i in range(out.shape[0]):
        x = widen(near[i])
        y = widen(far[i])
        result = x - (weight * (x - y) + lost_zero)
        stored = narrow(result, out[i])
        exact[i] = result
        out[i] = stored
        bad = np.uint32(bad | not_finite(x) | not_finite(y) | not_finite(widen(stored)))
    return bad


@njit(nogil=True, cache=True)
def fisher_of_pairs(a, b, fisher_a, fisher_b, numbers, bounds, out, exact, decided):
    """merge/fisher.py for two inputs and the linear fallback, for every tensor between `bounds`.

    numbers: (tensors, 6): weight, factor and floor of each input. Fills `decided`, the entries the
    fallback decided of each tensor; returns a count of what is not finite.
    """
    bad = np.uint32(0)
    for tensor in range(bounds.shape[0] - 1):
        # A slice each: an index that might be negative keeps a loop from being vectorised.
        here = slice(bounds[tensor], bounds[tensor + 1])
        inputs = a[here], b[here], fisher_a[here], fisher_b[here]
        found, decided[tensor] = _fisher_of_pair(*inputs, numbers[tensor], out[here], exact[here])
        bad |= found
    return bad


@njit(nogil=True, cache=True)
def _fisher_of_pair(a, b, fisher_a, fisher_b, numbers, out, exact):
    """One tensor of `fisher_of_pairs`: counts of what is not finite and of what fell back."""
    weight_a, factor_a, floor_a = numbers[0], numbers[1], numbers[2]
    weight_b, factor_b, floor_b = numbers[3], numbers[4], numbers[5]
    bad = fallback = np.uint32(0)
    zero = np.float32(0.0)
    for i in range(out.shape[0]):
        x = widen(a[i])
        y = widen(b[i])
        fx = widen(fisher_a[i])
        fy = widen(fisher_b[i])
        undecided = fx + fy == zero
        gx = weight_a if undecided else (fx if fx > floor_a else floor_a) * factor_a
        gy = weight_b if undecided else (fy if fy > floor_b else floor_b) * factor_b
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
    return bad, fallback
