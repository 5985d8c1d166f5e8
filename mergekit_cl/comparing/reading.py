"""One pass over the files of checkpoints: sums of their differences, digests of what was read.

Identical workers take spans of whole digest pieces in file order. Sums are taken over the blocks
that a merge takes them over and added in their order, so that neither workers nor memory matter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from mergekit_cl.block import BLOCK
from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.checkpoint.arrays import as_bytes, as_tensor
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.digest import PIECE_BYTES, PieceHash, tensor_digest
from mergekit_cl.divergence.bits import count_changed
from mergekit_cl.divergence.conflict import conflict_sums
from mergekit_cl.divergence.sums import SCRATCH_BUFFERS, Sums, block_sums, total
from mergekit_cl.errors import OptionError
from mergekit_cl.finite import count_nonfinite, nonfinite_input
from mergekit_cl.workers import share_out

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Source:
    """One tensor of one checkpoint."""

    checkpoint: Checkpoint
    name: str

    @property
    def info(self) -> TensorInfo:
        """What its header says."""
        return self.checkpoint.tensors[self.name]

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of it."""
        return as_tensor(self.checkpoint.block(self.info, start, stop), self.info.dtype)


@dataclass(frozen=True)
class Comparison:
    """One tensor against those of its parents.

    fishers: that of each parent, or None. base: what updates are measured from, if that is asked.
    """

    merged: Source
    parents: tuple[Source, ...]
    fishers: tuple[Source | None, ...]
    base: Source | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that is read for it."""
        more = (*self.fishers, self.base)
        return (self.merged, *self.parents, *(one for one in more if one is not None))

    @property
    def nbytes(self) -> int:
        """Bytes that are read for it."""
        return sum(source.info.nbytes for source in self.sources)


@dataclass(frozen=True)
class Compared:
    """Sums against each parent, and the digests of what was compared."""

    sums: tuple[Sums, ...]
    digest: str
    parent_digests: tuple[str, ...]


@dataclass(frozen=True)
class _Span:
    """Sums [block][parent], and pieces [merged, *parents][piece]."""

    block_sums: list[list[Sums]]
    pieces: list[list[bytes]]


def choose_workers(
    comparisons: Sequence[Comparison], threads: int | None, memory: int | None
) -> int:
    """Threads to use: those asked for or one per core up to 8, fewer to stay within `memory` bytes.

    Raises OptionError where not even one fits.
    """
    wanted = threads or min(len(os.sched_getaffinity(0)), 8)
    if memory is None:
        return wanted
    one = max((_buffer_bytes(comparison) for comparison in comparisons), default=0)
    if memory < one:
        raise OptionError(
            "the memory limit is too small for the buffers of one worker",
            detail=f"--memory {memory}: {one} bytes are needed",
            hint=f"--memory {-(-one // 2**20)}MiB",
        )
    return min(wanted, memory // one) if one else wanted


def read_all(
    comparisons: Sequence[Comparison],
    *,
    workers: int,
    allow_nonfinite: bool,
    advance: Advance,
) -> dict[str, Compared]:
    """Compare every tensor; keys are the names in the merged checkpoint.

    advance: told the bytes read, from any thread. Raises NonFiniteError naming a tensor with NaN or
    Inf, unless those are allowed, and what reading raises, after every worker has stopped.
    """
    ordered = sorted(comparisons, key=_reading_order)
    done: dict[str, dict[int, _Span]] = {one.merged.name: {} for one in ordered}

    def new_worker() -> Callable[[tuple[Comparison, int, int]], None]:
        scratch = [torch.empty(BLOCK, dtype=torch.float64) for _ in range(SCRATCH_BUFFERS)]

        def read(span: tuple[Comparison, int, int]) -> None:
            comparison, begin, end = span
            done[comparison.merged.name][begin] = _read(
                comparison, begin, end, scratch, allow_nonfinite
            )
            advance(_release(comparison, begin, end))

        return read

    share_out(_spans(ordered), workers, new_worker)
    return {
        one.merged.name: _join([part for _, part in sorted(done[one.merged.name].items())])
        for one in comparisons
    }


def _spans(comparisons: Sequence[Comparison]) -> Iterator[tuple[Comparison, int, int]]:
    for one in comparisons:
        numel = one.merged.info.numel
        sizes = [itemsize(source.info.dtype) for source in (one.merged, *one.parents)]
        length = max(PIECE_BYTES // min(sizes), BLOCK)
        for begin in range(0, max(numel, 1), length):
            yield one, begin, min(begin + length, numel)


def _read(
    comparison: Comparison,
    begin: int,
    end: int,
    scratch: Sequence[torch.Tensor],
    allow_nonfinite: bool,
) -> _Span:
    sources = (comparison.merged, *comparison.parents)
    hashes = [PieceHash() for _ in sources]
    found = []
    for start in range(begin, max(end, begin + 1), BLOCK):
        stop = min(start + BLOCK, end)
        blocks = [source.block(start, stop) for source in sources]
        for digest, block in zip(hashes, blocks, strict=True):
            digest.update(as_bytes(block))
        merged, parents = blocks[0], blocks[1:]
        fishers = [None if one is None else one.block(start, stop) for one in comparison.fishers]
        sums = block_sums(
            merged,
            None,
            parents,
            fishers,
            [count_changed(merged, parent) for parent in parents],
            None,
            [buffer[: stop - start] for buffer in scratch],
        )
        if not allow_nonfinite:
            _refuse_nonfinite(sources, blocks, sums)
        if comparison.base is not None:
            base = comparison.base.block(start, stop)
            sums = _with_conflict(blocks, base, sums, scratch)
        found.append(sums)
    return _Span(found, [digest.pieces() for digest in hashes])


def _with_conflict(
    blocks: Sequence[torch.Tensor],
    base: torch.Tensor,
    sums: Sequence[Sums],
    scratch: Sequence[torch.Tensor],
) -> list[Sums]:
    """How far updates from the base pull apart: of the parents, or of both where there is one."""
    inputs = blocks[1:] if len(blocks) > 2 else blocks
    part, whole = conflict_sums(inputs, base, [buffer[: base.numel()] for buffer in scratch])
    return [replace(one, conflict=part, conflict_whole=whole) for one in sums]


def _refuse_nonfinite(
    sources: Sequence[Source], blocks: Sequence[torch.Tensor], sums: Sequence[Sums]
) -> None:
    """Look for NaN and Inf only where a sum of squares is not finite."""
    if all(math.isfinite(one.merged_square + one.parent_square) for one in sums):
        return
    for source, block in zip(sources, blocks, strict=True):
        if bad := count_nonfinite(block):
            place = f"{source.checkpoint.path}: {source.name} ({bad} in one block)"
            raise nonfinite_input(place)


def _release(comparison: Comparison, begin: int, end: int) -> int:
    moved = 0
    for source in comparison.sources:
        source.checkpoint.release(source.name, begin, end)
        moved += (end - begin) * itemsize(source.info.dtype)
    return moved


def _join(parts: Sequence[_Span]) -> Compared:
    digests = [
        tensor_digest(piece for part in parts for piece in part.pieces[k])
        for k in range(len(parts[0].pieces))
    ]
    parents = range(len(digests) - 1)
    return Compared(
        tuple(total([block[k] for part in parts for block in part.block_sums]) for k in parents),
        digests[0],
        tuple(digests[1:]),
    )


def _buffer_bytes(comparison: Comparison) -> int:
    """Scratch, the float64 copies that different dtypes are compared in, and what is read ahead."""
    sources = {id(source.checkpoint): source.checkpoint for source in comparison.sources}
    ahead = sum(checkpoint.buffer_bytes for checkpoint in sources.values())
    stored = sum(itemsize(source.info.dtype) for source in comparison.sources)
    return BLOCK * (stored + 8 * (SCRATCH_BUFFERS + 2)) + ahead


def _reading_order(comparison: Comparison) -> tuple[str, int]:
    source = comparison.merged
    return str(source.checkpoint.file_of(source.name)), source.info.offset
