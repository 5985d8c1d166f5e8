"""Small tensors of one kind are merged together, as one block: alone, each would cost more work
around its bytes than on them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from mergekit_cl.merge.formula import FisherMean

if TYPE_CHECKING:
    from mergekit_cl.checkpoint.arrays import Array
    from mergekit_cl.plan import Step


@dataclass(frozen=True)
class Neighbours:
    """Steps of one kind that follow each other in reading order; of one block together.

    counts: elements of each, which are those of each of its operands as well.
    """

    steps: tuple[Step, ...]
    counts: tuple[int, ...]

    @property
    def bounds(self) -> Array:
        """Where each begins in the block, and the end: (steps + 1,) int64."""
        import numpy as np

        return np.asarray(list(accumulate(self.counts, initial=0)), np.int64)


def gather(steps: Iterable[Step], most: int) -> Iterator[Step | Neighbours]:
    """Steps in their order, with those that can be merged together in one.

    most: elements of a block, which all of them together have at most.
    """
    held: list[Step] = []
    counts: list[int] = []
    kind: Hashable = None
    elements = 0
    for step in steps:
        count = step.operands[0].info.numel
        its_kind = None if count > most else _kind(step)
        if held and (its_kind != kind or its_kind is None or elements + count > most):
            yield _one_or_many(held, counts)
            held, counts, elements = [], [], 0
        held.append(step)
        counts.append(count)
        kind = its_kind
        elements += count
    if held:
        yield _one_or_many(held, counts)


def _one_or_many(steps: list[Step], counts: list[int]) -> Step | Neighbours:
    return steps[0] if len(steps) == 1 else Neighbours(tuple(steps), tuple(counts))


def _kind(step: Step) -> Hashable:
    """What steps must have in common to be merged by one call of a compiled kernel; else None."""
    formula = step.formula
    if formula is None or step.merged_numel is not None or step.base is not None:
        return None
    # Fishers come with numbers for every tensor; others are the same formula for all.
    same = type(formula) if isinstance(formula, FisherMean) else formula
    return same, step.dtype, step.compute, step.sources, step.parents, step.fishers, step.residuals
