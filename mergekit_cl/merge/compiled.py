"""Merges of two inputs in one pass over a block, compiled for this processor.

The bits are those of merge/linear.py and merge/fisher.py. A block in which anything is not finite
is only reported: those formulas say what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mergekit_cl.merge.formula import Formula, PairFisher, PairMean
from mergekit_cl.native.kernel import Array, Kernel

mean_of_pair = Kernel("pair", "mean_of_pair")
fisher_of_pairs = Kernel("pair", "fisher_of_pairs")


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
        bad = mean_of_pair(stored[near], stored[far], rounded, lost_zero, out, exact, len(out))
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
        tensors = len(bounds) - 1
        bad = fisher_of_pairs(*stored[:4], rounded, out, exact, decided, bounds, tensors)
        return Compiled(not bad, decided.tolist())

    return run
