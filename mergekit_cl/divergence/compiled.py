"""The sums of divergence/sums.py in one pass over a block, compiled for this processor.

Sums of float64 products whose order may change: equal to the reference to 1e-9, not to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, types
from numba.extending import overload

from mergekit_cl.divergence.sums import Sums
from mergekit_cl.merge.compiled import Array, bits_of_double, bits_of_float, double_of_bits, widen

# Values are known to be finite; sums may be split over vector lanes and products contracted.
FREE_ORDER = {"reassoc", "contract", "nsz", "nnan", "ninf"}
COLUMNS = 8


def block_sums(
    merged: Array,
    exact: Array,
    parents: Sequence[Array],
    fishers: Sequence[Array | None],
    bounds: Array,
    fallback: Sequence[int] | None,
) -> list[list[Sums]]:
    """Sums [tensor][parent] of one finite block of one or more tensors.

    merged, parents, fishers: (n,) 16 or 32 bits, as stored. exact: (n,) of these or float64.
    bounds, fallback: as of merge/compiled.py.
    """
    tensors = len(bounds) - 1
    found: list[list[Sums]] = [[] for _ in range(tensors)]
    counts = np.diff(bounds).tolist()
    decided = [None] * tensors if fallback is None else fallback
    table = np.empty((tensors, COLUMNS))
    weighted = np.empty(tensors)
    for parent, fisher in zip(parents, fishers, strict=True):
        # + 0.0 below: free order leaves the sign of a sum of nothing open, and -0.0 looks odd.
        sums_of_pairs(merged, exact, parent, bounds, table)
        squares: list[float | None] = [None] * tensors
        if fisher is not None:
            fisher_sums(merged, parent, fisher, bounds, weighted)
            squares = (weighted + 0.0).tolist()
        rows = zip(found, counts, (table + 0.0).tolist(), squares, decided, strict=True)
        for sums, count, row, square, number in rows:
            merged_, parent_, difference, update, survived, rounded, largest, changed = row
            sums.append(
                Sums(
                    count=count,
                    parent_square=parent_,
                    merged_square=merged_,
                    difference_square=difference,
                    largest=largest,
                    changed=int(changed),
                    update_square=update,
                    update_survived=survived,
                    rounding_square=rounded,
                    fisher_square=square,
                    fallback=number,
                )
            )
    return found


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


@njit(nogil=True, cache=True, fastmath=FREE_ORDER)
def sums_of_pairs(merged, exact, parent, bounds, table):
    """Fill `table` (tensors, 8) with what `_sums_of_pair` gives of each tensor between `bounds`."""
    for tensor in range(bounds.shape[0] - 1):
        here = slice(bounds[tensor], bounds[tensor + 1])
        found = _sums_of_pair(merged[here], exact[here], parent[here])
        for column in range(COLUMNS):
            table[tensor, column] = found[column]


@njit(nogil=True, cache=True, fastmath=FREE_ORDER)
def _sums_of_pair(merged, exact, parent):
    """Sums of m^2, p^2, d^2, u^2, u d, (m - x)^2, then max |d| and the count of changed entries.

    d = m - p, u = x - p.
    """
    merged_square = parent_square = difference_square = 0.0
    update_square = survived = rounding_square = 0.0
    # As bits: the order of non-negative doubles is that of their bits, and vector units have a
    # maximum of integers that may be taken in any order.
    largest = changed = np.int64(0)
    for i in range(merged.shape[0]):
        m = np.float64(widen(merged[i]))
        p = np.float64(widen(parent[i]))
        d = m - p
        x = np.float64(widen(exact[i]))
        u = x - p
        merged_square += m * m
        parent_square += p * p
        difference_square += d * d
        update_square += u * u
        survived += u * d
        rounding_square += (m - x) * (m - x)
        largest = max(largest, bits_of_double(abs(d)))
        changed += np.int64(differ(merged[i], parent[i]))
    return (
        merged_square,
        parent_square,
        difference_square,
        update_square,
        survived,
        rounding_square,
        double_of_bits(largest),
        np.float64(changed),
    )


@njit(nogil=True, cache=True, fastmath=FREE_ORDER)
def fisher_sums(merged, parent, fisher, bounds, found):
    """Fill `found` (tensors,) with what `fisher_sum` gives of each tensor between `bounds`."""
    for tensor in range(bounds.shape[0] - 1):
        here = slice(bounds[tensor], bounds[tensor + 1])
        found[tensor] = fisher_sum(merged[here], parent[here], fisher[here])


@njit(nogil=True, cache=True, fastmath=FREE_ORDER)
def fisher_sum(merged, parent, fisher):
    """sum F (m - p)^2."""
    total = 0.0
    for i in range(merged.shape[0]):
        d = np.float64(widen(merged[i])) - np.float64(widen(parent[i]))
        total += np.float64(widen(fisher[i])) * d * d
    return total
