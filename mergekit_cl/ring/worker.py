"""A host thread that feeds the card: read and hash into a slot, take results, hash and write."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from mergekit_cl.block import BLOCK, BlockWorker, Write
from mergekit_cl.checkpoint.arrays import as_bytes, as_tensor, bytes_of
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.digest import PieceHash
from mergekit_cl.divergence.sums import Sums
from mergekit_cl.plan import Step
from mergekit_cl.results import SpanResult
from mergekit_cl.ring import chunk as chunks
from mergekit_cl.ring.budget import SMALLEST, goes_to_card
from mergekit_cl.ring.card import Card
from mergekit_cl.ring.slots import Slot


@dataclass
class _Span:
    """What is being made: where it goes, and what is known of it so far."""

    step: Step
    write: Write
    write_residual: Write | None
    out_hash: PieceHash
    hashes: list[PieceHash]
    sums: list[list[Sums]] = field(default_factory=list)


class RingWorker:
    """Slots of one thread; spans come and go as with BlockWorker, whose bytes these are.

    smallest: spans of fewer elements are merged here, as are copies.
    """

    def __init__(
        self, card: Card, report: bool, allow_nonfinite: bool, smallest: int = SMALLEST
    ) -> None:

        self.report = report
        self.allow_nonfinite = allow_nonfinite
        self.smallest = smallest
        self._card = card
        self._host = BlockWorker(report, allow_nonfinite)
        self._slots: list[Slot] = []

    def run(
        self, step: Step, begin: int, end: int, write: Write, write_residual: Write | None = None
    ) -> SpanResult:
        """Make elements `begin` to `end` of one output tensor.

        Takes, gives and raises what BlockWorker.run does.
        """
        if not goes_to_card(step, end - begin, self.smallest):
            return self._host.run(step, begin, end, write, write_residual)
        self._slots = self._slots or self._card.slots()
        sizes = [itemsize(operand.info.dtype) for operand in step.operands]
        out_hash = PieceHash()
        span = _Span(step, write, write_residual, out_hash, [PieceHash() for _ in sizes])
        pending: deque[tuple[Slot, int, int]] = deque()
        length = self._card.size.chunk
        for number, start in enumerate(range(begin, end, length)):
            slot = self._slots[number % len(self._slots)]
            stop = min(start + length, end)
            _fill(span, slot, start, stop)
            slot.send(chunks.stored_bytes(step, stop - start))
            if slot.is_pending:
                self._take(span, *pending.popleft())
            self._merge(span, slot, start, stop - start)
            pending.append((slot, start, stop))
        while pending:
            self._take(span, *pending.popleft())
        for operand in step.operands:
            operand.checkpoint.release(operand.info.name, begin, end)
        moved = (end - begin) * (itemsize(step.dtype) + sum(sizes))
        pieces = [one.pieces() for one in span.hashes]
        return SpanResult(out_hash.pieces(), pieces, span.sums, moved)

    def _merge(self, span: _Span, slot: Slot, start: int, count: int) -> None:
        step, keeps = span.step, span.write_residual is not None
        stored = chunks.carve_stored(step, slot.inputs.there, count)
        out, residual = chunks.carve_written(step, slot.output.there, count, keeps)
        table = chunks.carve_table(step, slot.table.there, count)
        slot.merge(
            lambda: chunks.merge_chunk(
                step,
                start,
                stored,
                out,
                residual,
                table,
                self._card.scratch,
                report=self.report,
                allow_nonfinite=self.allow_nonfinite,
            ),
            chunks.written_bytes(step, count, keeps),
            chunks.table_bytes(step, count),
        )

    def _take(self, span: _Span, slot: Slot, start: int, stop: int) -> None:
        """Check, hash and write a chunk that has come back."""
        step, count, keeps = span.step, stop - start, span.write_residual is not None
        output, table = slot.take()
        found = chunks.carve_table(step, table, count)
        span.sums += chunks.read_chunk(
            step, found, count, report=self.report, allow_nonfinite=self.allow_nonfinite
        )
        out, residual = chunks.carve_written(step, output, count, keeps)
        if span.write_residual is not None and residual is not None:
            span.write_residual(as_bytes(residual), start * 4)
        for at in range(0, count, BLOCK):
            span.out_hash.update(as_bytes(out[at : at + BLOCK]))
        span.write(as_bytes(out), start * itemsize(step.dtype))


def _fill(span: _Span, slot: Slot, start: int, stop: int) -> None:
    """Read a chunk of every operand into a slot, hashing each block while it is in the cache."""
    step = span.step
    stored = chunks.carve_stored(step, slot.refill(), stop - start)
    for operand, digest, into in zip(step.operands, span.hashes, stored, strict=True):
        for at in range(start, stop, BLOCK):
            here = into[at - start : min(at + BLOCK, stop) - start]
            block = operand.checkpoint.block(operand.info, at, min(at + BLOCK, stop))
            here.copy_(as_tensor(block, operand.info.dtype))
            digest.update(bytes_of(block))
