"""Sums of a difference whose rounding is not known, in one pass over a block.

As sums.py, but values need not be finite: a sum of something that is not is not either.
"""

from __future__ import annotations

import numpy as np

from mergekit_cl.native.elements import bits_of_double, differ, double_of_bits, widen

FASTMATH = frozenset({"reassoc", "contract", "nsz"})
"""Sums may be split over vector lanes and products contracted."""


def difference_sums(merged, parent, table, count):
    """Fill `table` (5,): sums of m^2, p^2 and d^2, max |d| and the count of changed entries.

    d = m - p.
    """
    merged_square = parent_square = difference_square = 0.0
    # As bits: the order of non-negative doubles is that of their bits.
    largest = changed = np.int64(0)
    for i in range(count):
        m = np.float64(widen(merged[i]))
        p = np.float64(widen(parent[i]))
        d = m - p
        merged_square += m * m
        parent_square += p * p
        difference_square += d * d
        largest = max(largest, bits_of_double(abs(d)))
        changed += np.int64(differ(merged[i], parent[i]))
    table[0] = merged_square
    table[1] = parent_square
    table[2] = difference_square
    table[3] = double_of_bits(largest)
    table[4] = np.float64(changed)
    return 0


def weighted_sum(merged, parent, fisher, found, count):
    """Fill `found` (1,) with sum F (m - p)^2."""
    total = 0.0
    for i in range(count):
        d = np.float64(widen(merged[i])) - np.float64(widen(parent[i]))
        total += np.float64(widen(fisher[i])) * d * d
    found[0] = total
    return 0
