"""One pass over the files of checkpoints: sums of their differences, digests of what was read.

Identical workers take spans of whole digest pieces in file order. Sums are taken over the blocks
that a merge takes them over and added in their order, so that neither workers nor memory matter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit_cl.block import BLOCK
from mergekit_cl.checkpoint.arrays import bytes_of
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.comparing.comparison import Comparison, Source
from mergekit_cl.comparing.summing import BlockSums
from mergekit_cl.digest import PIECE_BYTES, PieceHash, tensor_digest
from mergekit_cl.divergence.sums import SCRATCH_BUFFERS, Sums, total
from mergekit_cl.errors import OptionError
from mergekit_cl.finite import count_nonfinite_bits, nonfinite_input
from mergekit_cl.native.kernel import can_compile
from mergekit_cl.workers import share_out

if TYPE_CHECKING:
    from mergekit_cl.checkpoint.arrays import Array

Advance = Callable[[int], None]


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

    compiled = can_compile()

    def new_worker() -> Callable[[tuple[Comparison, int, int]], None]:
        sums = BlockSums(compiled)

        def read(span: tuple[Comparison, int, int]) -> None:
            comparison, begin, end = span
            done[comparison.merged.name][begin] = _read(
                comparison, begin, end, sums, allow_nonfinite
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
    sums_of: BlockSums,
    allow_nonfinite: bool,
) -> _Span:
    sources = (comparison.merged, *comparison.parents)
    hashes = [PieceHash() for _ in sources]
    found = []
    for start in range(begin, max(end, begin + 1), BLOCK):
        stop = min(start + BLOCK, end)
        blocks = [source.block(start, stop) for source in comparison.sources]
        for digest, block in zip(hashes, blocks, strict=False):
            digest.update(bytes_of(block))
        sums = sums_of(comparison, blocks)
        if not allow_nonfinite:
            _refuse_nonfinite(sources, blocks, sums)
        found.append(sums)
    return _Span(found, [digest.pieces() for digest in hashes])


def _refuse_nonfinite(
    sources: Sequence[Source], blocks: Sequence[Array], sums: Sequence[Sums]
) -> None:
    """Look for NaN and Inf only where a sum of squares is not finite."""
    if all(math.isfinite(one.merged_square + one.parent_square) for one in sums):
        return
    for source, block in zip(sources, blocks, strict=False):
        if bad := count_nonfinite_bits(block, source.info.dtype):
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
