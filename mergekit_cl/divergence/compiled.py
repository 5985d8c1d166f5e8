"""The sums of divergence/sums.py in one pass over a block, compiled for this processor.

Sums of float64 products whose order may change: equal to the reference to 1e-9, not to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mergekit_cl.divergence.sums import Sums
from mergekit_cl.merge.compiled import whole
from mergekit_cl.native.kernel import Array, Kernel

sums_of_pairs = Kernel("sums", "sums_of_pairs")
fisher_sums = Kernel("sums", "fisher_sums")

COLUMNS = 8


def block_sums(
    merged: Array,
    exact: Array,
    parents: Sequence[Array],
    fishers: Sequence[Array | None],
    bounds: Array,
    fallback: Sequence[int] | None,
) -> list[list[Sums]]:
    """Sums [tensor][parent] of one block of one or more tensors.

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
        sums_of_pairs(merged, exact, parent, table, bounds, tensors)
        squares: list[float | None] = [None] * tensors
        if fisher is not None:
            fisher_sums(merged, parent, fisher, weighted, bounds, tensors)
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


def fisher_sum(merged: Array, parent: Array, fisher: Array) -> float:
    """sum F (m - p)^2 of a finite block of one tensor."""
    found = np.empty(1)
    fisher_sums(merged, parent, fisher, found, whole(merged), 1)
    return float(found[0])


def difference_sums(
    merged: Array, parents: Sequence[Array], fishers: Sequence[Array | None]
) -> list[Sums] | None:
    """Sums against each parent of a block of one tensor whose values before rounding are not known.

    merged, parents, fishers: as of `block_sums`. None where something is not finite.
    """
    (found,) = block_sums(merged, merged, parents, fishers, whole(merged), None)
    for one in found:
        squares = one.merged_square, one.parent_square, one.difference_square
        if not math.isfinite(sum(squares) + (one.fisher_square or 0.0)):
            return None
        one.update_square = one.update_survived = one.rounding_square = None
    return found
