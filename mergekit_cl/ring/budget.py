"""How large a ring is: workers, elements per slot, and the bytes of all of it together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from mergekit_cl.block import BLOCK, BlockWorker
from mergekit_cl.errors import OptionError
from mergekit_cl.plan import Plan, Step
from mergekit_cl.ring.chunk import scratch_bytes, stored_bytes, table_bytes, written_bytes
from mergekit_cl.ring.slots import SlotBytes

SLOTS = 3
"""Slots of each worker: one is filled, one is on its way, one waits to be taken."""
CHUNK = 2**21
"""Elements of a slot where memory allows: 4 MiB of bfloat16, enough to keep the bus busy, and
small enough for a card's cache to hold what lies between its steps."""
SMALLEST = 2**16
"""Elements below which a tensor is merged on the CPU: queueing it would take longer."""
FEWEST = 4
"""Workers for which slots are made smaller, if memory is short: one thread cannot feed a card."""


@dataclass(frozen=True)
class RingSize:
    """workers: host threads. chunk: elements of a slot. nbytes: every buffer, on both sides."""

    workers: int
    chunk: int
    slot: SlotBytes
    scratch: int
    nbytes: int


def goes_to_card(step: Step, elements: int, smallest: int = SMALLEST) -> bool:
    """Whether so many elements of a step are merged on the card; copies are the host's."""
    merged = step.kernel is not None and step.merged_numel is None
    return merged and elements >= max(1, smallest)


def ring_size(threads: int | None, memory: int | None, plan: Plan) -> RingSize:
    """The ring for a plan: threads asked for, or one per core up to 8, within `memory` bytes.

    Slots shrink before fewer than `FEWEST` workers are left. Raises OptionError where not even
    one worker with slots of one block fits.
    """
    wanted = threads or min(len(os.sched_getaffinity(0)), 8)
    chunk = _largest_chunk(plan)
    while True:
        one, shared = worker_bytes(plan, chunk), card_scratch(plan, chunk)
        fitting = wanted if memory is None else min(wanted, (memory - shared) // one)
        if fitting >= min(wanted, FEWEST) or (chunk == BLOCK and fitting >= 1):
            nbytes = fitting * one + shared
            return RingSize(fitting, chunk, slot_bytes(plan, chunk), shared, nbytes)
        if chunk == BLOCK:
            raise OptionError(
                "the memory limit is too small for the buffers of one worker and a GPU",
                detail=f"--memory {memory}: {one + shared} bytes are needed",
                hint=f"--memory {-(-(one + shared) // 2**20)}MiB, or --device cpu",
            )
        chunk //= 2


def slot_bytes(plan: Plan, chunk: int) -> SlotBytes:
    """The largest slot that a step of the plan needs."""
    kept = (
        {t.name for shard in plan.carry.shards for t in shard.header.tensors} if plan.carry else ()
    )
    steps = _on_card(plan)
    return SlotBytes(
        max((stored_bytes(step, chunk) for step in steps), default=0),
        max((written_bytes(step, chunk, step.name in kept) for step in steps), default=0),
        max((table_bytes(step, chunk) for step in steps), default=0),
    )


def worker_bytes(plan: Plan, chunk: int) -> int:
    """Bytes of one worker: its slots here and on the card, and what it merges by itself."""
    slot = SLOTS * sum(pinned_bytes(size) + size for size in slot_bytes(plan, chunk))
    return slot + max((BlockWorker.buffer_bytes(step) for step in plan.steps.values()), default=0)


def card_scratch(plan: Plan, chunk: int) -> int:
    """Bytes on the card that all workers share."""
    return max((scratch_bytes(step, chunk) for step in _on_card(plan)), default=0)


def pinned_bytes(nbytes: int) -> int:
    """What torch takes for so much pinned memory: the next power of 2."""
    return 1 << (nbytes - 1).bit_length() if nbytes else 0


def _on_card(plan: Plan) -> Sequence[Step]:
    return [step for step in plan.steps.values() if step.kernel and step.merged_numel is None]


def _largest_chunk(plan: Plan) -> int:
    largest = max((step.operands[0].info.numel for step in _on_card(plan)), default=0)
    chunk = CHUNK
    while chunk > BLOCK and chunk // 2 >= largest:
        chunk //= 2
    return chunk
