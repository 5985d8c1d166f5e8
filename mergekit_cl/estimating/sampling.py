"""How many rows are enough: in which order they are taken, when to stop, and what to say of it.

Rows taken longest first waste the least padding, but a run that may stop early would then know only
the longest ones. So where a target is asked for, rows come in the order of their keys, which is
random, in stages of fixed numbers of rows; only within a stage are they sorted. Decisions fall
between stages: they are the same for every batch size and after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fisher.batch import Batch
    from mergekit_cl.training.encode import Encoded

FIRST_LOOK = 32
"""Rows before the first decision: a standard error from fewer is itself hardly known."""

LOOK_EVERY = 16


@dataclass(frozen=True)
class Stages:
    """The rows of a run in the order in which they are taken.

    target: relative standard error of the trace at which to stop, None for all rows.
    """

    stages: tuple[Encoded, ...]
    target: float | None

    def batches(self, size: int, wanted: Collection[str]) -> Iterator[Batch]:
        """Batches of at most `size` of the `wanted` rows, none across stages."""
        for stage in self.stages:
            yield from only(stage, wanted).batches(size)

    def enough(self, examples: int, error: float | None) -> bool:
        """Whether to stop after `examples` rows, whose relative standard error is `error`."""
        looked = examples >= FIRST_LOOK and (examples - FIRST_LOOK) % LOOK_EVERY == 0
        return looked and _within(error, self.target)


def in_stages(encoded: Encoded, order: Sequence[str], target: float | None) -> Stages:
    """Rows as they are to be taken; order: row ids by their keys, used where there is a target."""
    if target is None:
        return Stages((encoded,), None)
    place = {row_id: index for index, row_id in enumerate(order)}
    drawn = sorted(encoded.rows, key=lambda row: place[row.id])
    borders = [0, *range(FIRST_LOOK, len(drawn), LOOK_EVERY), len(drawn)]
    parts = (drawn[low:high] for low, high in pairwise(borders))
    return Stages(
        tuple(
            replace(encoded, rows=tuple(sorted(part, key=lambda row: (-len(row.ids), row.id))))
            for part in parts
        ),
        target,
    )


def only(encoded: Encoded, wanted: Collection[str]) -> Encoded:
    """Those of the rows whose ids are wanted, in their order."""
    kept = frozenset(wanted)
    return replace(encoded, rows=tuple(row for row in encoded.rows if row.id in kept))


def describe_sampling(
    *, examples: int, asked: int, error: float | None, target: float | None
) -> dict[str, Any]:
    """What the sidecar says of its sample (docs/sidecar.md, `sampling`).

    examples: rows used. asked: `--samples`. error: relative standard error of the trace.
    """
    reached = _within(error, target)
    needed = None
    if target is not None and error is not None and not reached:
        # The error falls with the root of the number of rows.
        needed = math.ceil(examples * (error / target) ** 2)
    return {
        "target_se": target,
        "relative_standard_error": error,
        "stopped": "target" if reached else "samples" if examples >= asked else "rows",
        "examples_needed": needed,
    }


def _within(error: float | None, target: float | None) -> bool:
    return target is not None and error is not None and error <= target
