"""How fast this host, bus and card are at a plan's own work, measured in well under a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from mergekit_cl.block import BLOCK, BlockWorker
from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.arrays import as_array, as_bytes
from mergekit_cl.checkpoint.dtypes import itemsize, torch_dtype
from mergekit_cl.checkpoint.header import TensorInfo
from mergekit_cl.digest import PieceHash
from mergekit_cl.plan import Operand, Plan, Step
from mergekit_cl.ring import chunk as chunks
from mergekit_cl.ring.backend import Backend, Stream
from mergekit_cl.ring.budget import SLOTS, RingSize, goes_to_card
from mergekit_cl.ring.predict import Rates, Work

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array

REPEATS = 3
"""The smallest time counts, the first of which pays for what is done once."""


class Sample:
    """A stand-in for a checkpoint: every tensor of it is the same few values, held in memory."""

    path = "sample"
    buffer_bytes = 0

    def __init__(self, count: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self._values = torch.rand(count, generator=generator).add_(1.0)
        self._held: dict[str, torch.Tensor] = {}

    def hold(self, dtype: str) -> str:
        """Make the values of a dtype; its name is the tensor's."""
        self._held[dtype] = self._values.to(torch_dtype(dtype))
        return dtype

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """As Checkpoint.read."""
        return self._held[name][start:stop]

    def block(self, tensor: TensorInfo, start: int, stop: int) -> Array:
        """As Checkpoint.block."""
        return as_array(self.read(tensor.name, start, stop))

    def release(self, name: str, start: int, stop: int) -> None:
        """Nothing to give back."""


def work_of(plan: Plan, threads: int) -> Work:
    """A plan in numbers."""
    merged = sum(
        s.operands[0].info.numel for s in plan.steps.values() if goes_to_card(s, 1, smallest=1)
    )
    return Work(plan.bytes_read, plan.bytes_written, merged, threads)


def typical_step(plan: Plan) -> Step | None:
    """The largest step a card could make, or None."""
    steps = [
        step for step in plan.steps.values() if goes_to_card(step, step.operands[0].info.numel)
    ]
    return max(steps, key=lambda step: step.operands[0].info.numel, default=None)


def measure(step: Step, size: RingSize, report: bool, backend: Backend) -> Rates:
    """Time a block of a step on the CPU, a chunk of it on the card, copies and hashes."""
    import torch

    sample = Sample(size.chunk)
    tried = _on_sample(step, sample)
    started = time.perf_counter()
    here = backend.pinned(size.slot.inputs)
    pinning = time.perf_counter() - started
    there = backend.memory(size.slot.inputs)
    into, compute = backend.stream("into"), backend.stream("compute")
    source = torch.ones(size.slot.inputs, dtype=torch.uint8)
    sent = _seconds_of(into, lambda: there.copy_(here, non_blocking=True))
    fetched = _seconds_of(into, lambda: here.copy_(there, non_blocking=True))
    hashed = len(source) / _best(lambda: PieceHash().update(as_bytes(source)))
    return Rates(
        copied=len(source) / _best(lambda: here.copy_(source)),
        hashed=hashed,
        cpu_merged=_cpu_rate(tried, report, hashed),
        sent=size.slot.inputs / sent,
        fetched=size.slot.inputs / fetched,
        card_merged=size.chunk / _card_seconds(tried, sample, size, report, backend, compute),
        start=pinning * SLOTS * size.workers,
    )


def _on_sample(step: Step, sample: Sample) -> Step:
    """The step with operands of the same dtypes that need no file."""
    operands = tuple(
        Operand(cast(Checkpoint, sample), info._replace(name=sample.hold(info.dtype)))
        for _, info in step.operands
    )
    return step._replace(operands=operands)


def _cpu_rate(step: Step, report: bool, hashed: float) -> float:
    """Elements per second of one thread, less the hashing, which is counted apart."""

    worker = BlockWorker(report, True)
    spent = _best(lambda: worker.run(step, 0, BLOCK, lambda data, offset: None))
    sizes = [itemsize(operand.info.dtype) for operand in step.operands]
    hashing = BLOCK * (sum(sizes) + itemsize(step.dtype)) / hashed
    return BLOCK / max(spent - hashing, spent / 10)


def _card_seconds(
    step: Step, sample: Sample, size: RingSize, report: bool, backend: Backend, compute: Stream
) -> float:
    """Seconds of one chunk on the card, copies apart."""
    count = size.chunk
    scratch = backend.memory(size.scratch)
    stored = chunks.carve_stored(step, backend.memory(size.slot.inputs), count)
    for operand, into in zip(step.operands, stored, strict=True):
        into.copy_(sample.read(operand.info.name, 0, count))
    out, _ = chunks.carve_written(step, backend.memory(size.slot.output), count, False)
    table = chunks.carve_table(step, backend.memory(size.slot.table), count)
    return _seconds_of(
        compute,
        lambda: chunks.merge_chunk(
            step, 0, stored, out, None, table, scratch, report=report, allow_nonfinite=True
        ),
    )


def _seconds_of(stream: Stream, work: Callable[[], object]) -> float:
    def whole() -> None:
        stream.launch(work)
        stream.record().synchronize()

    return _best(whole)


def _best(work: Callable[[], object]) -> float:
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return max(min(found), 1e-9)
