"""Sums of one block of a comparison, by compiled code where there is some for its types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from mergekit_cl.block import BLOCK
from mergekit_cl.comparing.comparison import Comparison
from mergekit_cl.divergence.bits import count_changed
from mergekit_cl.divergence.compiled import difference_sums
from mergekit_cl.divergence.conflict import conflict_sums
from mergekit_cl.divergence.sums import SCRATCH_BUFFERS, Sums, block_sums
from mergekit_cl.merge.formula import COMPILED_DTYPES

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array


Block = TypeVar("Block")


class BlockSums:
    """Of one worker, with buffers of its own. compiled: whether there is a compiler."""

    def __init__(self, compiled: bool) -> None:
        self._compiled = compiled
        self._buffers: list[torch.Tensor] = []

    def __call__(self, comparison: Comparison, blocks: Sequence[Array]) -> list[Sums]:
        """Sums against each parent; blocks: of every source. Where something is not finite, the
        sum of squares it is in is not.
        """
        dtypes = {source.info.dtype for source in comparison.sources}
        if self._compiled and comparison.base is None and dtypes <= COMPILED_DTYPES:
            merged, parents, fishers, _ = _by_part(comparison, blocks)
            if (found := difference_sums(merged, parents, fishers)) is not None:
                return found
        return self._by_reference(comparison, blocks)

    def _by_reference(self, comparison: Comparison, arrays: Sequence[Array]) -> list[Sums]:
        blocks = [source.as_tensor(b) for source, b in zip(comparison.sources, arrays, strict=True)]
        scratch = self._scratch(len(arrays[0]))
        merged, parents, fishers, base = _by_part(comparison, blocks)
        changed = [count_changed(merged, parent) for parent in parents]
        sums = block_sums(merged, None, parents, fishers, changed, None, scratch)
        if base is None:
            return sums
        # How far updates from the base pull apart: of the parents, or of both where there is one.
        inputs = parents if len(parents) > 1 else [merged, *parents]
        part, whole = conflict_sums(inputs, base, scratch)
        return [replace(one, conflict=part, conflict_whole=whole) for one in sums]

    def _scratch(self, count: int) -> list[torch.Tensor]:
        import torch

        while len(self._buffers) < SCRATCH_BUFFERS:
            self._buffers.append(torch.empty(BLOCK, dtype=torch.float64))
        return [buffer[:count] for buffer in self._buffers]


def _by_part(
    comparison: Comparison, blocks: Sequence[Block]
) -> tuple[Block, list[Block], list[Block | None], Block | None]:
    """Blocks of every source: (merged, parents, the Fisher of each or None, base or None)."""
    given = iter(blocks)
    merged, *parents = islice(given, 1 + len(comparison.parents))
    fishers = [None if one is None else next(given) for one in comparison.fishers]
    return merged, parents, fishers, next(given, None)
