"""Blocks through kernels: identical workers that read, compute, hash and write.

Knows order, buffers and devices; knows no formula. A span of a tensor is one unit of work; blocks
inside it are sized for the processor's cache. Nothing about the result depends on how many workers
there are or which of them did what.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mergekit_cl.block import BLOCK, BlockWorker, SpanResult, Write
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.digest import PIECE_BYTES, tensor_digest
from mergekit_cl.divergence.sums import Sums, total
from mergekit_cl.errors import OptionError
from mergekit_cl.layout import Shard
from mergekit_cl.output.shards import ShardFiles
from mergekit_cl.plan import Plan, Step
from mergekit_cl.ring import card as cards
from mergekit_cl.ring.budget import RingSize
from mergekit_cl.ring.worker import RingWorker

if TYPE_CHECKING:
    import torch

Advance = Callable[[int], None]

SMALL = 2**17
"""Bytes read for a tensor, on average, below which two threads are slower than one."""


@dataclass(frozen=True)
class TensorResult:
    """What is known of an output tensor: digests of it and its operands, sums per parent."""

    digest: str
    operand_digests: tuple[str, ...]
    sums: tuple[Sums, ...]


@dataclass(frozen=True)
class StreamOptions:
    """workers: threads. report: compute divergence. allow_nonfinite: let NaN and Inf through.

    ring: of what size it is where the device is a GPU, which is merged on through one.
    compiled: use kernels compiled for this processor where there are any; the bytes are the same.
    """

    device: torch.device
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
    return max((BlockWorker.buffer_bytes(step) for step in plan.steps.values()), default=0)


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
    import torch

    results = dict(finished)
    work = _Work(plan, files, carry, results, on_tensor, on_shard)
    stop = threading.Event()
    spans = work.spans()
    lock = threading.Lock()
    card = None
    if options.ring is not None:
        card = cards.Card(cards.open_backend(options.device), options.ring)

    def next_span() -> tuple[Shard, Step, int, int, int] | None:
        with lock:
            return None if stop.is_set() else next(spans, None)

    def run_worker() -> None:
        worker = (
            BlockWorker(options.report, options.allow_nonfinite, options.compiled)
            if card is None
            else RingWorker(card, options.report, options.allow_nonfinite)
        )
        while (span := next_span()) is not None:
            shard, step, offset, begin, end = span
            done = worker.run(
                step, begin, end, files.writer(shard.file, offset), work.residual_writer(step.name)
            )
            advance(done.bytes_moved)
            work.finish_span(shard, step, begin, done)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(options.workers) as pool:
            futures = [pool.submit(run_worker) for _ in range(options.workers)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
        for future in futures:
            future.result()
    finally:
        torch.set_num_threads(threads)
        if card is not None:
            card.close()
        files.close()
        if carry is not None:
            carry.close()
    return results


class _Work:
    """Hands out spans in file order and puts their results together."""

    def __init__(
        self,
        plan: Plan,
        files: ShardFiles,
        carry: ShardFiles | None,
        results: dict[str, TensorResult],
        on_tensor: Callable[[Step, TensorResult], None],
        on_shard: Callable[[Shard, dict[str, TensorResult]], None],
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
        self._pending: dict[str, _Pending] = {}
        self._tensors_left: dict[str, int] = {}
        self._lock = threading.Lock()
        self._telling = threading.Lock()

    def spans(self) -> Iterator[tuple[Shard, Step, int, int, int]]:
        """(shard, step, tensor's offset in its file, first element, end) in reading order."""
        for shard in self._plan.layout.shards:
            infos = {info.name: info for info in shard.header.tensors}
            if all(name in self._results for name in infos):
                continue
            self._files.create(shard)
            with self._lock:
                self._tensors_left[shard.file] = len(infos)
            order = sorted(infos, key=lambda name: _reading_order(self._plan.steps[name]))
            for name in order:
                step, info = self._plan.steps[name], infos[name]
                length = span_elements(step)
                starts = range(0, max(info.numel, 1), length)
                with self._lock:
                    self._pending[name] = _Pending(len(starts))
                for start in starts:
                    yield shard, step, info.offset, start, min(start + length, info.numel)

    def residual_writer(self, name: str) -> Write | None:
        """Where a tensor's residuals go, or None where none are kept."""
        if self._carry is None or name not in self._residuals:
            return None
        return self._carry.writer(self._carry.layout.shards[0].file, self._residuals[name])

    def finish_span(self, shard: Shard, step: Step, begin: int, done: SpanResult) -> None:
        """Take in one span; the last of a tensor gives its result, of a shard closes it."""
        with self._lock:
            pending = self._pending[step.name]
            pending.done[begin] = done
            pending.left -= 1
            if pending.left:
                return
            parts = [part for _, part in sorted(pending.done.items())]
            del self._pending[step.name]
            result = _join(parts)
            self._on_tensor(step, result)
            self._results[step.name] = result
            self._tensors_left[shard.file] -= 1
            if self._tensors_left[shard.file]:
                return
        self._files.finish(shard.file)
        with self._telling:
            if self._carry is not None:
                self._carry.sync()
            self._on_shard(shard, {t.name: self._results[t.name] for t in shard.header.tensors})


def span_elements(step: Step) -> int:
    """Elements per span: whole digest pieces of every operand and of the output."""
    sizes = [itemsize(operand.info.dtype) for operand in step.operands]
    return max(PIECE_BYTES // min([itemsize(step.dtype), *sizes]), BLOCK)


def _reading_order(step: Step) -> tuple[str, int]:
    first = step.operands[0]
    return str(first.checkpoint.file_of(first.info.name)), first.info.offset


def _join(parts: list[SpanResult]) -> TensorResult:
    operands = range(len(parts[0].operand_pieces))
    return TensorResult(
        tensor_digest(piece for part in parts for piece in part.pieces),
        tuple(
            tensor_digest(piece for part in parts for piece in part.operand_pieces[k])
            for k in operands
        ),
        tuple(
            total([block[parent] for part in parts for block in part.block_sums])
            for parent in range(len(parts[0].block_sums[0]) if parts[0].block_sums else 0)
        ),
    )
