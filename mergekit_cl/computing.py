"""What a merge is computed with, and why: the CPU's workers, or a ring on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from mergekit_cl.device import choose_device, may_have_gpu
from mergekit_cl.errors import OptionError
from mergekit_cl.plan import Plan
from mergekit_cl.ring import card as cards
from mergekit_cl.ring.budget import RingSize, ring_size
from mergekit_cl.ring.measure import measure, typical_step, work_of
from mergekit_cl.ring.predict import choose
from mergekit_cl.stream import buffer_bytes, default_workers

NO_GPU = "no CUDA GPU is visible here"
PLAIN = "a plain average is bound by reading and writing: a GPU gains nothing"


@dataclass(frozen=True)
class Computing:
    """workers: threads. buffer_bytes: all buffers. reason: why this device. ring: on a GPU."""

    device: str
    workers: int
    buffer_bytes: int
    reason: str
    ring: RingSize | None = None


@dataclass(frozen=True)
class Limits:
    """What the user allows: a device by name or "auto", threads, bytes of all buffers."""

    device: str
    threads: int | None
    memory: int | None


def choose_computing(limits: Limits, plan: Plan, *, report: bool, averages: bool) -> Computing:
    """The device a user named, or of `auto` the faster one.

    averages: whether all that is computed besides the report is a linear merge. Raises OptionError
    for a device that is not there, and for too little memory.
    """
    if limits.device == "auto":
        return _faster(limits, plan, report, averages)
    if limits.device == "cpu" or choose_device(limits.device).type == "cpu":
        return _on_cpu(limits, plan, "as asked")
    return _on_card(limits.device, ring_size(limits.threads, limits.memory, plan), "as asked")


def _faster(limits: Limits, plan: Plan, report: bool, averages: bool) -> Computing:
    """By measurement; without one where its outcome is known."""
    if not may_have_gpu():
        return _on_cpu(limits, plan, NO_GPU)
    import torch

    if not torch.cuda.is_available():
        return _on_cpu(limits, plan, NO_GPU)
    if averages and not report:
        return _on_cpu(limits, plan, PLAIN)
    step = typical_step(plan)
    if step is None:
        return _on_cpu(limits, plan, "no tensor is large enough for a GPU to help")
    device = f"cuda:{torch.cuda.current_device()}"
    try:
        size = ring_size(limits.threads, limits.memory, plan)
        backend = cards.open_backend(device)
        try:
            rates = measure(step, size, report, backend)
        finally:
            backend.close()
    except OptionError as error:
        return _on_cpu(limits, plan, f"a GPU is here, but {error}")
    choice = choose(work_of(plan, size.workers), rates)
    if choice.device == "cpu":
        return _on_cpu(limits, plan, choice.reason)
    return _on_card(device, size, choice.reason)


def _on_cpu(limits: Limits, plan: Plan, reason: str) -> Computing:
    workers = default_workers(limits.threads, limits.memory, plan)
    return Computing("cpu", workers, workers * buffer_bytes(plan), reason)


def _on_card(device: str, size: RingSize, reason: str) -> Computing:
    return Computing(device, size.workers, size.nbytes, reason, size)
