"""One pass over what a merge would read: sums per tensor, and digests of every operand.

Sums are taken over the blocks that a merge takes them over and added in their order, so that
neither threads nor memory matter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergekit_cl.block import BLOCK, blocks_of
from mergekit_cl.checkpoint.arrays import as_bytes, as_tensor
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.digest import PieceHash, tensor_digest
from mergekit_cl.errors import NonFiniteError, OptionError
from mergekit_cl.finite import count_nonfinite
from mergekit_cl.plan import Plan, Step
from mergekit_cl.stream import span_elements
from mergekit_cl.sweep.evaluate import Buffers, Prepare, buffer_bytes, copied_squares
from mergekit_cl.workers import share_out

Array = np.ndarray[Any, np.dtype[np.float64]]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Swept:
    """Sums of one tensor, of the shape its evaluation gives, and the digests of its operands."""

    sums: Array
    operand_digests: tuple[str, ...]


@dataclass(frozen=True)
class _Span:
    sums: list[Array]
    pieces: list[list[bytes]]


def measured_steps(plan: Plan) -> list[Step]:
    """The steps of float tensors, merged or copied: what a prediction is about."""
    return [step for step in plan.steps.values() if step.parents]


def choose_workers(plan: Plan, threads: int | None, memory: int | None) -> int:
    """Threads to use: those asked for or one per core up to 8, fewer to stay within `memory` bytes.

    Raises OptionError where not even one fits.
    """
    wanted = threads or min(len(os.sched_getaffinity(0)), 8)
    one = bytes_per_worker(plan)
    if memory is None or not one:
        return wanted
    if memory < one:
        raise OptionError(
            "the memory limit is too small for the buffers of one worker",
            detail=f"--memory {memory}: {one} bytes are needed",
            hint=f"--memory {-(-one // 2**20)}MiB",
        )
    return min(wanted, memory // one)


def bytes_per_worker(plan: Plan) -> int:
    """Bytes of buffers that one thread needs."""
    return max((buffer_bytes(step) for step in measured_steps(plan)), default=0)


def bytes_read(plan: Plan) -> int:
    """Bytes that a sweep reads."""
    return sum(o.info.nbytes for step in measured_steps(plan) for o in step.operands)


def seconds_expected(plan: Plan, prepare: Prepare, workers: int) -> float:
    """How long the arithmetic will take, from the second run of one block of the largest tensor."""
    merged = [step for step in measured_steps(plan) if step.kernel is not None]
    if not merged:
        return 0.0
    step = max(merged, key=lambda step: step.operands[0].info.numel)
    count = min(BLOCK, step.merged_numel or step.operands[0].info.numel)
    buffers = Buffers()
    spent = 0.0
    for _ in range(2):
        started = time.perf_counter()
        _read(step, prepare, 0, count, buffers)
        spent = time.perf_counter() - started
    elements = sum(one.operands[0].info.numel for one in merged)
    return spent * elements / max(count, 1) / workers


def read_all(plan: Plan, prepare: Prepare, *, workers: int, advance: Advance) -> dict[str, Swept]:
    """Sums and digests of every float tensor, by name and in the plan's order.

    advance: told the bytes read, from any thread. Raises NonFiniteError naming a tensor with NaN or
    Inf, of which nothing can be predicted, and what reading raises, after every worker has stopped.
    """
    ordered = sorted(measured_steps(plan), key=_reading_order)
    done: dict[str, dict[int, _Span]] = {step.name: {} for step in ordered}

    def new_worker() -> Callable[[tuple[Step, int, int]], None]:
        buffers = Buffers()

        def read(span: tuple[Step, int, int]) -> None:
            step, begin, end = span
            done[step.name][begin] = _read(step, prepare, begin, end, buffers)
            advance(_release(step, begin, end))

        return read

    share_out(_spans(ordered), workers, new_worker)
    return {
        step.name: _join([part for _, part in sorted(done[step.name].items())])
        for step in measured_steps(plan)
    }


def in_order(parts: Sequence[Array]) -> Array:
    """Their sum, added one after the other so that it is the same on every run."""
    found = np.zeros_like(parts[0])
    for part in parts:
        found = found + part
    return found


def _spans(steps: Sequence[Step]) -> Iterator[tuple[Step, int, int]]:
    for step in steps:
        numel = step.operands[0].info.numel
        length = span_elements(step)
        for begin in range(0, max(numel, 1), length):
            yield step, begin, min(begin + length, numel)


def _read(step: Step, prepare: Prepare, begin: int, end: int, buffers: Buffers) -> _Span:
    evaluate = None if step.kernel is None else prepare(step)
    hashes = [PieceHash() for _ in step.operands]
    found = []
    for start, stop, is_tail in blocks_of(begin, end, step.merged_numel):
        operands = step.operands[:1] if is_tail else step.operands
        stored = [
            as_tensor(o.checkpoint.block(o.info, start, stop), o.info.dtype) for o in operands
        ]
        for digest, block in zip(hashes, stored, strict=False):
            digest.update(as_bytes(block))
        if is_tail:
            continue
        if evaluate is None:
            sums = copied_squares(step, stored, buffers)
        else:
            sums = evaluate(stored, buffers)
        if not np.isfinite(sums).all():
            raise _nonfinite(step, stored)
        found.append(sums)
    return _Span(found, [digest.pieces() for digest in hashes])


def _nonfinite(step: Step, stored: Sequence[Any]) -> NonFiniteError:
    for operand, block in zip(step.operands, stored, strict=True):
        if bad := count_nonfinite(block):
            return NonFiniteError(
                "an input holds NaN or Inf, of which no loss can be predicted",
                detail=f"{operand.checkpoint.path}: {operand.info.name} ({bad} in one block)",
                hint="repair it, or merge with --weights given and --allow-nonfinite",
            )
    return NonFiniteError(
        "a predicted loss overflows",
        detail=f"{step.name}: finite inputs, but too large for a sum of squares",
        hint="give --weights",
    )


def _release(step: Step, begin: int, end: int) -> int:
    moved = 0
    for operand in step.operands:
        last = max(begin, min(end, operand.info.numel))
        operand.checkpoint.release(operand.info.name, begin, last)
        moved += (last - begin) * itemsize(operand.info.dtype)
    return moved


def _join(parts: Sequence[_Span]) -> Swept:
    sums = [block for part in parts for block in part.sums]
    operands = range(len(parts[0].pieces))
    return Swept(
        in_order(sums),
        tuple(tensor_digest(p for part in parts for p in part.pieces[k]) for k in operands),
    )


def _reading_order(step: Step) -> tuple[str, int]:
    first = step.operands[0]
    return str(first.checkpoint.file_of(first.info.name)), first.info.offset
