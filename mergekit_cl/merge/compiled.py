"""Merges of one block, compiled for this processor.

The bits are those of merge/linear.py, merge/ema.py and merge/fisher.py. A block in which anything
is not finite is only reported: those formulas say what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mergekit_cl.merge.formula import Differences, FisherMean, Formula, Updates
from mergekit_cl.native.kernel import Array, Kernel

mean_of_pair = Kernel("pair", "mean_of_pair")
fisher_of_pairs = Kernel("pair", "fisher_of_pairs")
begin_differences = Kernel("mean", "begin_differences")
add_difference = Kernel("mean", "add_difference")
end_differences = Kernel("mean", "end_differences")
look = Kernel("mean", "look")
add_fisher = Kernel("fold", "add_fisher")
begin_mean = Kernel("fold", "begin_mean")
fold = Kernel("fold", "fold")
end_mean = Kernel("fold", "end_mean")


class Compiled(NamedTuple):
    """finite: whether every operand and result was.

    fallback: entries it decided, for each tensor of the block; None where there is no fallback.
    """

    finite: bool
    fallback: list[int] | None


BlockKernel = Callable[[Sequence[Array], Array, Array, Array], Compiled]
"""(operands, bounds, out, exact) -> Compiled; fills `out` (rounded) and `exact`.

operands: as stored, or in the type of `exact`, which is that of the arithmetic: float32 or float64.
bounds: where in the block each tensor begins, and its end; (tensors + 1,) int64.
"""

Scratch = Callable[[str, Array], Array]
"""(name, an array) -> one of its length and type, the same for the same name."""


def block_kernel(formulas: Sequence[Formula], scratch: Scratch) -> BlockKernel:
    """The compiled form of formulas of one kind: one for each tensor of a block."""
    fishers = [one for one in formulas if isinstance(one, FisherMean)]
    if fishers:
        return _fisher_mean(fishers, scratch)
    formula = formulas[0]  # there is but one
    if isinstance(formula, Updates):
        return _updates(formula, scratch)
    assert isinstance(formula, Differences)
    return _differences(formula, scratch)


def _differences(formula: Differences, scratch: Scratch) -> BlockKernel:
    def run(stored: Sequence[Array], bounds: Array, out: Array, exact: Array) -> Compiled:
        anchor = stored[formula.anchor]
        terms = [(stored[k], weight) for k, weight in formula.terms]
        return Compiled(not _subtract(anchor, terms, out, exact, scratch), None)

    return run


def _updates(formula: Updates, scratch: Scratch) -> BlockKernel:
    def run(stored: Sequence[Array], bounds: Array, out: Array, exact: Array) -> Compiled:
        bad = 0
        state = stored[0]
        for left, (online, decay) in enumerate(
            zip(stored[1:], formula.decays, strict=False), 1 - len(formula.decays)
        ):
            # The state is nearer unless the online weights are, or as near.
            near, far, weight = state, online, 1.0 - decay
            if weight >= decay:
                near, far, weight = online, state, decay
            # Two buffers in turn, so that the last result lies in `exact`.
            into = scratch("state", exact) if left % 2 else exact
            bad |= _subtract(near, [(far, weight)], out, into, scratch)
            state = into
        return Compiled(not bad, None)

    return run


def _subtract(
    anchor: Array,
    terms: Sequence[tuple[Array, float]],
    out: Array,
    exact: Array,
    scratch: Scratch,
) -> int:
    """exact = anchor - sum_k w_k (anchor - x_k), rounded into `out`; how much is not finite."""
    real = exact.dtype.type
    # A difference of +0 times a negative weight is -0, which would lose a -0.
    lost_zero = real(0.0 if min(weight for _, weight in terms) < 0 else -0.0)
    count = len(out)
    if len(terms) == 1 and real is np.float32 and out.dtype != np.int16:
        ((far, weight),) = terms
        return mean_of_pair(anchor, far, real(weight), lost_zero, out, exact, count)
    total = scratch("total", exact)
    bad = 0
    for k, (x, weight) in enumerate(terms):
        step = add_difference if k else begin_differences
        bad |= step(anchor, x, real(weight), total, count)
    return bad | end_differences(anchor, total, lost_zero, out, exact, count)


def _fisher_mean(formulas: Sequence[FisherMean], scratch: Scratch) -> BlockKernel:
    inputs, tensors = len(formulas[0].scales), len(formulas)
    decided = np.empty(tensors, np.int64)
    # (tensors, inputs, 3)
    scales = np.asarray(
        [[(s.weight, s.factor, s.floor) for s in formula.scales] for formula in formulas]
    )

    def run(stored: Sequence[Array], bounds: Array, out: Array, exact: Array) -> Compiled:
        with np.errstate(over="ignore"):  # an infinite factor makes results that are not finite
            numbers = scales.astype(exact.dtype)
        operands = stored[: 2 * inputs]
        if inputs == 2 and exact.dtype == np.float32 and out.dtype != np.int16:
            bad = fisher_of_pairs(*operands, numbers, out, exact, decided, bounds, tensors)
            return Compiled(not bad, decided.tolist())
        some, total = scratch("some", exact), scratch("total", exact)
        some.fill(0.0)
        bad = 0
        for fisher in operands[inputs:]:
            bad |= add_fisher(fisher, some, len(out))
        for k in range(inputs):
            step = fold if k else begin_mean
            own = np.ascontiguousarray(numbers[:, k])
            fisher = operands[inputs + k]
            bad |= step(operands[k], fisher, some, own, exact, total, bounds, tensors)
        bad |= end_mean(some, exact, out, decided, bounds, tensors)
        return Compiled(not bad, decided.tolist())

    return run


def whole(array: Array) -> Array:
    """The bounds of a block of one tensor."""
    return np.asarray([0, len(array)], np.int64)
