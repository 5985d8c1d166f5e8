"""Blocks through kernels: identical workers that read, compute, hash and write.

Knows order, buffers and devices; knows no formula. A span of a tensor, or several small tensors of
one kind, is one unit of work; blocks inside it are sized for the processor's cache. Nothing about
the result depends on how many workers there are or which of them did what.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mergekit_cl.block import BLOCK, BlockWorker, Write, WriteAll
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.digest import PIECE_BYTES
from mergekit_cl.errors import OptionError
from mergekit_cl.layout import Shard
from mergekit_cl.neighbours import Neighbours, gather
from mergekit_cl.output.shards import ShardFiles
from mergekit_cl.plan import Plan, Step
from mergekit_cl.results import SpanResult, TensorResult, join
from mergekit_cl.ring import card as cards
from mergekit_cl.ring.budget import RingSize
from mergekit_cl.ring.worker import RingWorker
from mergekit_cl.workers import share_out

Advance = Callable[[int], None]

SMALL = 2**17
"""Bytes read for a tensor, on average, below which two threads are slower than one."""


@dataclass(frozen=True)
class StreamOptions:
    """workers: threads. report: compute divergence. allow_nonfinite: let NaN and Inf through.

    ring: of what size it is where the device is a GPU, which is merged on through one.
    compiled: use kernels compiled for this processor where there are any; the bytes are the same.
    """

    device: str
    workers: int
    report: bool
    allow_nonfinite: bool
    ring: RingSize | None = None
    compiled: bool = False


@dataclass
class _Pending:
    """Spans of one tensor that are still out, and those that are done."""

    left: int
    done: dict[int, SpanResult] = field(default_factory=dict)


def default_workers(threads: int | None, memory: int | None, plan: Plan) -> int:
    """Threads to use: those asked for or one per core up to 8, fewer to stay within `memory` bytes.

    One for tensors of a few KiB, which are mostly Python's own work: threads take turns at that.
    Raises OptionError where not even one worker fits.
    """
    wanted = threads or min(len(os.sched_getaffinity(0)), 8)
    if threads is None and plan.bytes_read < SMALL * len(plan.steps):
        wanted = 1
    if memory is None:
        return wanted
    one = buffer_bytes(plan)
    if memory < one:
        raise OptionError(
            "the memory limit is too small for the buffers of one worker",
            detail=f"--memory {memory}: {one} bytes are needed",
            hint=f"--memory {-(-one // 2**20)}MiB",
        )
    return min(wanted, memory // one)


def buffer_bytes(plan: Plan) -> int:
    """Bytes of buffers one worker needs for a plan."""
    # Of tens of thousands of steps most are of one kind.
    kinds = {(s.sources, s.dtype, s.compute, s.kernel_bytes): s for s in plan.steps.values()}
    return max(map(BlockWorker.buffer_bytes, kinds.values()), default=0)


@dataclass(frozen=True)
class _Span:
    """Elements `begin` to `end` of a tensor that lies at `offset` of its file."""

    shard: Shard
    step: Step
    offset: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Together:
    """Several whole tensors; offsets: where each lies in the file."""

    shard: Shard
    neighbours: Neighbours
    offsets: tuple[int, ...]


_Unit = _Span | _Together


def run_stream(
    plan: Plan,
    files: ShardFiles,
    options: StreamOptions,
    *,
    carry: ShardFiles | None = None,
    finished: Mapping[str, TensorResult],
    on_tensor: Callable[[Step, TensorResult], None],
    on_shard: Callable[[Shard, dict[str, TensorResult]], None],
    advance: Advance,
) -> dict[str, TensorResult]:
    """Fill every shard that is not finished; returns the results of all tensors.

    carry: where residuals go, if the plan keeps them; open and of its full size.
    finished: tensors of shards already on the disk. on_tensor: called with each tensor's result,
    may refuse it by raising. on_shard: called once a shard is forced to the
    disk. advance: told the bytes read and written by each span.
    Raises what a kernel or the disk raises, after every worker has stopped.
    """
    results = dict(finished)
    card = None
    if options.ring is not None:
        card = cards.Card(cards.open_backend(options.device), options.ring)
    work = _Work(
        plan,
        files,
        carry,
        results,
        on_tensor,
        on_shard,
        joins=options.compiled and card is None,
    )

    def new_worker() -> Callable[[_Unit], None]:
        host = BlockWorker(options.report, options.allow_nonfinite, options.compiled)
        worker = host if card is None else RingWorker(card, options.report, options.allow_nonfinite)

        def do(unit: _Unit) -> None:
            if isinstance(unit, _Together):
                write, write_residuals = work.writers(unit)
                found = host.run_together(unit.neighbours, write, write_residuals)
                advance(_bytes_moved(unit.neighbours))
                work.finish(unit.shard, list(zip(unit.neighbours.steps, found, strict=True)))
                return
            done = worker.run(
                unit.step,
                unit.begin,
                unit.end,
                files.writer(unit.shard.file, unit.offset),
                work.residual_writer(unit.step.name),
            )
            size = itemsize(unit.step.dtype)
            begin, end = unit.offset + unit.begin * size, unit.offset + unit.end * size
            files.start_writing(unit.shard.file, begin, end)
            advance(done.bytes_moved)
            work.finish_span(unit, done)

        return do

    try:
        share_out(work.units(), options.workers, new_worker)
    finally:
        if card is not None:
            card.close()
        files.close()
        if carry is not None:
            carry.close()
    return results


def _ahead(units: Iterable[_Unit]) -> Iterator[_Unit]:
    """The units, each handed out when the system has been told to read the one after it."""
    held: list[_Unit] = []
    for unit in units:
        if isinstance(unit, _Span):
            for operand in unit.step.operands:
                end = min(unit.end, operand.info.numel)
                operand.checkpoint.expect(operand.info.name, unit.begin, end)
        yield from held
        held = [unit]
    yield from held


class _Work:
    """Hands out units in file order and puts their results together."""

    def __init__(
        self,
        plan: Plan,
        files: ShardFiles,
        carry: ShardFiles | None,
        results: dict[str, TensorResult],
        on_tensor: Callable[[Step, TensorResult], None],
        on_shard: Callable[[Shard, dict[str, TensorResult]], None],
        joins: bool,
    ) -> None:
        self._plan = plan
        self._files = files
        self._carry = carry
        self._residuals = {
            tensor.name: tensor.offset
            for shard in (carry.layout.shards if carry else ())
            for tensor in shard.header.tensors
        }
        self._results = results
        self._on_tensor = on_tensor
        self._on_shard = on_shard
        self._joins = joins
        self._pending: dict[str, _Pending] = {}
        self._tensors_left: dict[str, int] = {}
        self._lock = threading.Lock()
        self._telling = threading.Lock()

    def units(self) -> Iterator[_Unit]:
        """Every unit of work that is not finished, in reading order; makes their files."""
        for unit in _ahead(self._planned()):
            with self._lock:
                is_new = unit.shard.file not in self._tensors_left
            if is_new:
                self._files.create(unit.shard)
                with self._lock:
                    self._tensors_left[unit.shard.file] = len(unit.shard.header.tensors)
            yield unit

    def _planned(self) -> Iterator[_Unit]:
        for shard in self._plan.layout.shards:
            offsets = {info.name: info.offset for info in shard.header.tensors}
            if all(name in self._results for name in offsets):
                continue
            steps = sorted((self._plan.steps[name] for name in offsets), key=_reading_order)
            for one in gather(steps, BLOCK) if self._joins else steps:
                if isinstance(one, Neighbours):
                    yield _Together(shard, one, tuple(offsets[step.name] for step in one.steps))
                else:
                    yield from self._spans(shard, one, offsets[one.name])

    def _spans(self, shard: Shard, step: Step, offset: int) -> Iterator[_Span]:
        numel = math.prod(step.shape)
        length = span_elements(step)
        starts = range(0, max(numel, 1), length)
        with self._lock:
            self._pending[step.name] = _Pending(len(starts))
        for start in starts:
            yield _Span(shard, step, offset, start, min(start + length, numel))

    def residual_writer(self, name: str) -> Write | None:
        """Where a tensor's residuals go, or None where none are kept."""
        if self._carry is None or name not in self._residuals:
            return None
        return self._carry.writer(self._carry.layout.shards[0].file, self._residuals[name])

    def writers(self, unit: _Together) -> tuple[WriteAll, WriteAll | None]:
        """Where several tensors go, and their residuals; None where none are kept."""
        steps, counts = unit.neighbours.steps, unit.neighbours.counts
        size = itemsize(steps[0].dtype)
        places = list(zip(unit.offsets, (count * size for count in counts), strict=True))
        write = self._files.writer_of_several(unit.shard.file, places)
        if self._carry is None or steps[0].name not in self._residuals:
            return write, None
        at = [self._residuals[step.name] for step in steps]
        kept = list(zip(at, (count * 4 for count in counts), strict=True))
        return write, self._carry.writer_of_several(self._carry.layout.shards[0].file, kept)

    def finish_span(self, span: _Span, done: SpanResult) -> None:
        """Take in one span; the last of a tensor gives its result."""
        with self._lock:
            pending = self._pending[span.step.name]
            pending.done[span.begin] = done
            pending.left -= 1
            if pending.left:
                return
            del self._pending[span.step.name]
        parts = [part for _, part in sorted(pending.done.items())]
        self.finish(span.shard, [(span.step, join(parts))])

    def finish(self, shard: Shard, made: Sequence[tuple[Step, TensorResult]]) -> None:
        """Take in whole tensors; the last of a shard closes it."""
        with self._lock:
            for step, result in made:
                self._on_tensor(step, result)
                self._results[step.name] = result
            self._tensors_left[shard.file] -= len(made)
            if self._tensors_left[shard.file]:
                return
        self._files.finish(shard.file)
        with self._telling:
            if self._carry is not None:
                self._carry.sync()
            self._on_shard(shard, {t.name: self._results[t.name] for t in shard.header.tensors})


def _bytes_moved(neighbours: Neighbours) -> int:
    """Bytes read and written to make them all."""
    like = neighbours.steps[0]
    sizes = [itemsize(like.dtype), *(itemsize(dtype) for _, dtype in like.sources)]
    return sum(neighbours.counts) * sum(sizes)


def span_elements(step: Step) -> int:
    """Elements per span: whole digest pieces of every operand and of the output."""
    sizes = [itemsize(operand.info.dtype) for operand in step.operands]
    return max(PIECE_BYTES // min([itemsize(step.dtype), *sizes]), BLOCK)


def _reading_order(step: Step) -> tuple[str, int]:
    first = step.operands[0]
    return str(first.checkpoint.file_of(first.info.name)), first.info.offset
