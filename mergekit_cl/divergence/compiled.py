"""The sums of divergence/sums.py in one pass over a block, compiled for this processor.

Sums of float64 products whose order may change: equal to the reference to 1e-9, not to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numba import njit, types
from numba.extending import overload

from mergekit_cl.divergence.sums import Sums
from mergekit_cl.merge.compiled import (
    as_array,
    bits_of_double,
    bits_of_float,
    double_of_bits,
    widen,
)

if TYPE_CHECKING:
    import torch

# Values are known to be finite; sums may be split over vector lanes and products contracted.
FREE_ORDER = {"reassoc", "contract", "nsz", "nnan", "ninf"}


def block_sums(
    merged: torch.Tensor,
    exact: torch.Tensor,
    parents: Sequence[torch.Tensor],
    fishers: Sequence[torch.Tensor | None],
    fallback: int | None,
) -> list[Sums]:
    """Sums of one finite block against each parent.

    merged, parents, fishers: (n,) 16 or 32 bits, as stored. exact: (n,) of these or float64.
    """
    m, x = as_array(merged), as_array(exact)
    found = []
    for parent, fisher in zip(parents, fishers, strict=True):
        p = as_array(parent)
        (
            merged_square,
            parent_square,
            difference_square,
            update,
            survived,
            rounded,
            largest,
            changed,
        ) = sums_of_pair(m, x, p)
        fisher_square = None if fisher is None else float(fisher_sum(m, p, as_array(fisher)))
        found.append(
            Sums(
                count=merged.numel(),
                parent_square=parent_square,
                merged_square=merged_square,
                difference_square=difference_square,
                largest=largest,
                changed=changed,
                update_square=update,
                update_survived=survived,
                rounding_square=rounded,
                fisher_square=fisher_square,
                fallback=fallback,
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
def sums_of_pair(merged, exact, parent):
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
        changed,
    )


@njit(nogil=True, cache=True, fastmath=FREE_ORDER)
def fisher_sum(merged, parent, fisher):
    """sum F (m - p)^2."""
    total = 0.0
    for i in range(merged.shape[0]):
        d = np.float64(widen(merged[i])) - np.float64(widen(parent[i]))
        total += np.float64(widen(fisher[i])) * d * d
    return total
