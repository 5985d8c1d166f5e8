"""The sums of divergence/sums.py in one pass over a block.

Sums of float64 products whose order may change: equal to the reference to 1e-9, not to the bit.
A sum of something that is not finite is not either.
"""

from __future__ import annotations

import numpy as np

from mergekit_cl.native.elements import bits_of_double, differ, double_of_bits, widen

FASTMATH = frozenset({"reassoc", "contract", "nsz"})
"""Sums may be split over vector lanes and products contracted."""


def sums_of_pairs(merged, exact, parent, table, bounds, tensors):
    """Fill `table` (tensors, 8) with sums of each tensor between `bounds`.

    They are those of m^2, p^2, d^2, u^2, u d, (m - x)^2, then max |d| and the count of changed
    entries. d = m - p, u = x - p.
    """
    for tensor in range(tensors):
        merged_square = parent_square = difference_square = 0.0
        update_square = survived = rounding_square = 0.0
        # As bits: the order of non-negative doubles is that of their bits, and vector units have a
        # maximum of integers that may be taken in any order.
        largest = changed = np.int64(0)
        for i in range(bounds[tensor], bounds[tensor + 1]):
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
        at = 8 * tensor
        table[at] = merged_square
        table[at + 1] = parent_square
        table[at + 2] = difference_square
        table[at + 3] = update_square
        table[at + 4] = survived
        table[at + 5] = rounding_square
        table[at + 6] = double_of_bits(largest)
        table[at + 7] = np.float64(changed)
    return 0


def fisher_sums(merged, parent, fisher, found, bounds, tensors):
    """Fill `found` (tensors,) with sum F (m - p)^2 of each tensor between `bounds`."""
    for tensor in range(tensors):
        total = 0.0
        for i in range(bounds[tensor], bounds[tensor + 1]):
            d = np.float64(widen(merged[i])) - np.float64(widen(parent[i]))
            total += np.float64(widen(fisher[i])) * d * d
        found[tensor] = total
    return 0
