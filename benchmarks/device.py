"""How fast merges are on a GPU, beside the CPU, plain `.to()`, and what bus and host allow.

    python benchmarks/device.py --work /dev/shm/device [--gb 8] [--runs 3]

Two bf16 models of `--gb` each with Fisher sidecars are made once in `--work`, which needs room for
five times as much; a folder in memory keeps the disk out. Every row reads and writes whole files;
the smallest of `--runs` counts. "to()" is what people write: tensor by tensor to the GPU,
the same formula there, back and into the file; it hashes nothing. Bound: the slower of the bus
(inputs in, output back, pinned) and the host (inputs and output copied once, by every thread).
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import machine, table
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.merge.kernel import SCRATCH_BUFFERS
from mergekit_cl.merge.rounding import round_into
from mergekit_cl.merging import OutputOptions, make_plan, run_merge
from mergekit_cl.methods.ema import ema_method
from mergekit_cl.methods.fisher import fisher_method
from mergekit_cl.methods.linear import linear_method
from mergekit_cl.methods.method import Method
from mergekit_cl.output.shards import ShardFiles
from mergekit_cl.plan import Plan, Selection
from mergekit_cl.report.progress import no_progress
from mergekit_cl.ring.backend import Backend
from mergekit_cl.sidecar import sidecar_of

METHODS = ("linear", "fisher", "ema")
COPIED = 2**28
REPEATS = 5


@dataclass(frozen=True)
class Bandwidths:
    """Bytes per second: over the bus from and to pinned and pageable memory; host to host."""

    pinned_in: float
    pinned_out: float
    pageable_in: float
    pageable_out: float
    host_one: float
    host_all: float


def bandwidths(backend: Backend, nbytes: int, threads: int) -> Bandwidths:
    """Each from the fastest of a few copies of `nbytes`."""
    pinned, there = backend.pinned(nbytes), backend.memory(nbytes)
    source, target = (torch.ones(nbytes, dtype=torch.uint8) for _ in range(2))
    stream = backend.stream("into")

    def over_bus(into: torch.Tensor, of: torch.Tensor) -> float:
        def copy() -> None:
            stream.launch(lambda: into.copy_(of, non_blocking=True))
            stream.record().synchronize()

        return nbytes / fastest(copy)

    with ThreadPoolExecutor(threads) as pool:
        parts = list(zip(target.chunk(threads), source.chunk(threads), strict=True))

        def all_threads() -> None:
            list(pool.map(lambda part: part[0].copy_(part[1]), parts))

        return Bandwidths(
            over_bus(there, pinned),
            over_bus(pinned, there),
            over_bus(there, source),
            over_bus(target, there),
            nbytes / fastest(lambda: target.copy_(source)),
            nbytes / fastest(all_threads),
        )


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def bound_seconds(plan: Plan, speed: Bandwidths) -> tuple[float, str]:
    """What bus and host allow, and which of them binds."""
    bus = max(plan.bytes_read / speed.pinned_in, plan.bytes_written / speed.pinned_out)
    host = (plan.bytes_read + plan.bytes_written) / speed.host_all
    return (bus, "bus") if bus > host else (host, "host")


def method_of(name: str, work: Path) -> Method:
    """A method over the pair in `work`."""
    models = [open_checkpoint(work / one) for one in "ab"]
    if name == "linear":
        return linear_method(
            models, weights=(0.3, 0.7), normalize=True, base=None, sidecars=[None, None]
        )
    if name == "ema":
        return ema_method(models, decay=0.9, half_life=None, warmup=False, sidecars=[None, None])
    return fisher_method(
        models,
        [sidecar_of(model, None) for model in models],
        weights=None,
        normalize="trace",
        floor=1e-6,
        fallback="linear",
        on_missing="error",
        base=None,
        allow_mixed=False,
        selection=Selection(),
    )


def merge_seconds(name: str, work: Path, out: Path, device: str) -> float:
    """A whole merge by the tool, digests and all, without a report."""
    shutil.rmtree(out, ignore_errors=True)
    method = method_of(name, work)
    return run_merge(method, OutputOptions(out, device=device, report=False), no_progress).seconds


def plain_seconds(name: str, work: Path, out: Path, device: str) -> float:
    """The same tensors by `.to()`, one after another."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    method = method_of(name, work)
    started = time.perf_counter()
    plan = make_plan(method, OutputOptions(out / "unused"))
    files = ShardFiles(out, plan.layout)
    for shard in plan.layout.shards:
        files.create(shard)
        for info in shard.header.tensors:
            step = plan.steps[info.name]
            assert step.kernel is not None
            compute = torch_dtype(step.compute)
            operands = [
                operand.checkpoint.read(operand.info.name).to(device).to(compute)
                for operand in step.operands
            ]
            scratch = [torch.empty_like(operands[0]) for _ in range(SCRATCH_BUFFERS)]
            rounded = torch.empty_like(operands[0], dtype=torch_dtype(step.dtype))
            round_into(rounded, step.kernel(operands, scratch).exact)
            data = rounded.cpu().view(torch.uint8).numpy().data
            files.writer(shard.file, info.offset)(data, 0)
        files.finish(shard.file)
    return time.perf_counter() - started


def same_weights(one: Path, other: Path) -> bool:
    """Whether two outputs have the same weight files, byte for byte."""
    names = [sorted(path.name for path in out.glob("*.safetensors")) for out in (one, other)]
    equal, _, _ = filecmp.cmpfiles(one, other, names[0], shallow=False)
    return names[0] == names[1] == sorted(equal) != []


def comparison(work: Path, speed: Bandwidths, device: str, runs: int) -> str:
    """A Markdown table: seconds, share of the bound, whether the bytes are the CPU's."""
    heads = ["merge", "CPU s", "ring s", "to() s", "ring / to()", "bound s", "share of bound"]
    rows = []
    for name in METHODS:
        outs = [work / f"out-{how}" for how in ("cpu", "ring", "to")]
        ways: Sequence[Callable[[], float]] = [
            lambda n=name, o=outs[0]: merge_seconds(n, work, o, "cpu"),  # type: ignore[misc]
            lambda n=name, o=outs[1]: merge_seconds(n, work, o, device),  # type: ignore[misc]
            lambda n=name, o=outs[2]: plain_seconds(n, work, o, device),  # type: ignore[misc]
        ]
        cpu, ring, plain = (min(way() for _ in range(runs)) for way in ways)
        plan = make_plan(method_of(name, work), OutputOptions(work / "unused"))
        bound, binding = bound_seconds(plan, speed)
        same = all(same_weights(outs[0], other) for other in outs[1:])
        seconds = [f"{value:.2f}" for value in (cpu, ring, plain, plain / ring)]
        share = [f"{bound:.2f} ({binding})", f"{bound / ring:.0%}"]
        rows.append([name, *seconds, *share, "equal" if same else "DIFFER"])
        for out in outs:
            shutil.rmtree(out)
    return table([*heads, "bytes"], rows)


def told(speed: Bandwidths) -> str:
    """The bandwidths as a Markdown table in GB/s."""
    values = [f"{getattr(speed, name) / 1e9:.1f}" for name in Bandwidths.__dataclass_fields__]
    rows = [["to the GPU", values[0], values[2]], ["from the GPU", values[1], values[3]]]
    host = f"host to host: {values[4]} GB/s by one thread, {values[5]} by all"
    return f"{table(['GB/s', 'pinned', 'pageable'], rows)}\n\n{host}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gb", type=float, default=8.0)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU is visible here: nothing to measure", file=sys.stderr)
        return 1
    from benchmarks.synthetic import shapes, write_model, write_sidecar
    from mergekit_cl.ring.cuda import CudaBackend

    none, one = (sum(2 * torch.Size(shape).numel() for _, shape in shapes(n)) for n in (0, 1))
    layers = max(1, round((given.gb * 1e9 - none) / (one - none)))
    for name, seed in (("a", 1), ("b", 2)):
        write_model(given.work / name, layers, seed)
        write_sidecar(given.work / name, seed)
    cores = min(len(os.sched_getaffinity(0)), 8)
    backend = CudaBackend(torch.device("cuda"))
    speed = bandwidths(backend, COPIED, cores)
    print(
        f"{torch.cuda.get_device_name()}, {machine()}, "
        f"torch {torch.__version__}; two bf16 models of {(none + layers * (one - none)) / 1e9:.1f} "
        f"GB, {cores} threads\n"
    )
    print(told(speed) + "\n" + comparison(given.work, speed, "cuda", given.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
