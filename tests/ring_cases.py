"""Spans through the CPU's worker and through a ring on a fake device, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from fake_device import FakeBackend
from making import fisher_like, write_model, write_sidecar

from mergekit_cl.block import BLOCK, BlockWorker
from mergekit_cl.merging import OutputOptions, make_plan
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Plan
from mergekit_cl.results import SpanResult
from mergekit_cl.ring.budget import RingSize, card_scratch, slot_bytes
from mergekit_cl.ring.card import Card
from mergekit_cl.ring.worker import RingWorker


class Made(NamedTuple):
    """What a worker gave: its result, the bytes of the output, those of the residuals."""

    result: SpanResult
    written: bytes
    residual: bytes


def models(
    folder: Path, tensors: list[dict[str, torch.Tensor]], *, with_fisher: bool = False
) -> list[Path]:
    """One checkpoint per dict, with a sidecar if wanted."""
    paths = []
    for k, held in enumerate(tensors):
        paths.append(write_model(folder / str(k), held))
        if with_fisher:
            write_sidecar(paths[-1], fisher_like(held, k))
    return paths


def noise(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Weights of many sizes, zeros of both signs among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator, dtype=torch.float64) * 0.1
    values[::7] = 0.0
    values[3::7] = -0.0
    return values.to(dtype)


def plan_of(method: Method, **options: Any) -> Plan:
    """A method's plan."""
    return make_plan(method, OutputOptions(target=Path("nowhere"), **options))


def on_cpu(plan: Plan, *, report: bool = True, allow: bool = False, name: str = "w") -> Made:
    """One tensor as the CPU makes it."""
    return run(BlockWorker(report, allow), plan, name)


def on_ring(
    plan: Plan,
    backend: FakeBackend,
    *,
    report: bool = True,
    allow: bool = False,
    name: str = "w",
    chunk: int = BLOCK,
) -> Made:
    """One tensor through a ring whose slots hold `chunk` elements."""
    size = RingSize(1, chunk, slot_bytes(plan, chunk), card_scratch(plan, chunk), 0)
    card = Card(backend, size)
    try:
        return run(RingWorker(card, report, allow, smallest=0), plan, name)
    finally:
        card.close()


def run(worker: BlockWorker | RingWorker, plan: Plan, name: str) -> Made:
    """One tensor as a worker makes it."""
    step = plan.steps[name]
    count = step.operands[0].info.numel
    written, residual = bytearray(), bytearray()

    def put(into: bytearray, data: memoryview, offset: int) -> None:
        into.extend(bytes(max(0, offset + len(data.tobytes()) - len(into))))
        into[offset : offset + data.nbytes] = data.tobytes()

    kept = plan.carry is not None
    result = worker.run(
        step,
        0,
        count,
        lambda data, offset: put(written, data, offset),
        (lambda data, offset: put(residual, data, offset)) if kept else None,
    )
    return Made(result, bytes(written), bytes(residual))
