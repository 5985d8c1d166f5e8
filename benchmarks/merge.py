"""How fast merges are beside what the disk allows, and how much memory they add.

    python benchmarks/merge.py --work DIR [--layers 22] [--runs 3]

Rows run in turn, each in a process of its own that loads torch before its clock starts; the
smallest of `--runs` counts, and ratios are to the floor above of the same state of the page cache.
Floor: two threads read all inputs, write as many bytes as the output has, fsync. "cold" evicts the
inputs from the page cache first. "three" is a linear merge of three models, "ema" an update of a
state whose residuals are given back and kept. "bound by" is the share of their time that the cores
computed. Memory: the largest anonymous resident set during the row, less what it was before.
The load-everything script is what people write: two state dicts, one
expression, save_file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import PIECE, Peak, evict, lacks_room, machine, table, touch

ROWS = ("linear floor", "linear", "linear+report", "load all", "three floor", "three")
ROWS += ("ema floor", "ema", "fisher floor", "fisher", "fisher+report")
MODELS = {"three": ("a", "b", "c"), "ema": ("state", "b")}
BESIDE = {"fisher": "fisher.safetensors", "ema": "carry.safetensors"}
THREADS = min(len(os.sched_getaffinity(0)), 8)


def kind_of(row: str) -> str:
    """What a row merges, or the floor of that."""
    return row.split()[0].partition("+")[0]


def inputs(work: Path, row: str) -> list[Path]:
    kind = kind_of(row)
    models = [work / name for name in MODELS.get(kind, ("a", "b"))]
    files = [f for model in models for f in sorted(model.glob("*.safetensors"))]
    beside = [model / "clmerge" / BESIDE[kind] for model in models if kind in BESIDE]
    return files + [path for path in beside if path.exists()]


def output_bytes(work: Path, row: str) -> int:
    """Of weights, and of an average's residuals."""
    kept = [*(work / "a").glob("*.safetensors")]
    if row.startswith("ema"):
        kept.append(work / "state" / "clmerge" / "carry.safetensors")
    return sum(file.stat().st_size for file in kept)


def floor(files: list[Path], written: int, out: Path) -> None:
    """Read every byte, write as many as the output has, force them to the disk."""
    out.mkdir()
    target = os.open(out / "floor", os.O_RDWR | os.O_CREAT)
    block = os.urandom(PIECE)

    def read(file: Path) -> None:
        buffer = bytearray(PIECE)
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    def write(start: int) -> None:
        for offset in range(start, min(start + 64 * PIECE, written), PIECE):
            os.pwrite(target, block[: min(PIECE, written - offset)], offset)

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(read, file) for file in files]
        jobs += [pool.submit(write, start) for start in range(0, written, 64 * PIECE)]
        for job in jobs:
            job.result()
    os.fsync(target)
    os.close(target)


def row_work(row: str, work: Path, out: Path) -> Callable[[], None]:
    """What a row does, everything it needs imported."""
    if "floor" in row:
        files, written = inputs(work, row), output_bytes(work, row)
        return lambda: floor(files, written, out)
    if row == "load all":
        return _load_all(work, out)
    if row == "ema":
        return lambda: _update(work / "state", work / "b", out)
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.merging import OutputOptions, run_merge
    from mergekit_cl.methods.fisher import fisher_method
    from mergekit_cl.methods.linear import linear_method
    from mergekit_cl.plan import Selection
    from mergekit_cl.report.progress import no_progress
    from mergekit_cl.sidecar import sidecar_of

    kind, report = kind_of(row), row.endswith("+report")

    def run() -> None:
        models = [open_checkpoint(work / name) for name in MODELS.get(kind, ("a", "b"))]
        if kind != "fisher":
            none = [None] * len(models)
            method = linear_method(models, weights=None, normalize=True, base=None, sidecars=none)
        else:
            method = fisher_method(
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
        run_merge(method, OutputOptions(out, report=report), no_progress)

    return run


def _update(state: Path, online: Path, out: Path) -> None:
    """One step of an average, with its residuals."""
    from mergekit_cl.carry import find_carry
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.merging import OutputOptions, run_merge
    from mergekit_cl.methods.ema import ema_method
    from mergekit_cl.report.progress import no_progress

    models = [open_checkpoint(state), open_checkpoint(online)]
    none = [None, None]
    method = ema_method(models, decay=0.9, half_life=None, warmup=False, sidecars=none)
    method = replace(method, carries=[find_carry(models[0])])
    run_merge(method, OutputOptions(out, report=False, carry=True), no_progress)


def _load_all(work: Path, out: Path) -> Callable[[], None]:
    from safetensors.torch import load_file, save_file

    def run() -> None:
        def state(name: str) -> dict:
            files = sorted((work / name).glob("*.safetensors"))
            return {key: value for file in files for key, value in load_file(file).items()}

        a, b = state("a"), state("b")
        merged = {key: (a[key].float() * 0.5 + b[key].float() * 0.5).bfloat16() for key in a}
        out.mkdir()
        save_file(merged, out / "model.safetensors")
        descriptor = os.open(out / "model.safetensors", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    return run


def child(row: str, work: Path, out: Path) -> None:
    """Run one row in this process and print what it cost."""
    import torch  # noqa: F401 - before the clock

    work_of_row = row_work(row, work, out)
    with Peak() as peak:
        started, busy = time.perf_counter(), time.process_time()
        work_of_row()
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
    found = {"seconds": seconds, "busy": busy, "memory": peak.largest - peak.before}
    print(json.dumps(found))


def measure(row: str, work: Path, cold: bool) -> dict[str, float]:
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    files = inputs(work, row)
    (evict if cold else touch)(files)
    command = [sys.executable, __file__, "--child", row, "--work", str(work)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    shutil.rmtree(out, ignore_errors=True)
    return json.loads(printed.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        child(given.child, given.work, given.work / "out")
        return
    from benchmarks.synthetic import write_model, write_sidecar

    # Models, sidecars, an average with its residuals and an output, of 100 MB per layer each.
    needed = 2 if (given.work / "state").exists() else 15
    if (reason := lacks_room(given.work, needed * (given.layers + 3) * 10**8)) is not None:
        raise SystemExit(reason)
    rows = given.rows.split(",")
    for name, seed in (("a", 1), ("b", 2)):
        write_model(given.work / name, given.layers, seed)
        if "fisher" in rows:
            write_sidecar(given.work / name, seed)
    if "three" in rows:
        write_model(given.work / "c", given.layers, 3)
    if "ema" in rows and not (given.work / "state").exists():
        _update(given.work / "a", given.work / "b", given.work / "state")
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        r: {"cold": [], "warm": []} for r in rows
    }
    for _ in range(given.runs):
        for row in rows:
            for state in ("cold", "warm"):
                found[row][state].append(measure(row, given.work, state == "cold"))
    lines = []
    for row in rows:
        kind = kind_of(row)
        base = f"{kind if f'{kind} floor' in rows else 'linear'} floor"
        cells = [row]
        for state in ("cold", "warm"):
            best = min(found[row][state], key=lambda one: one["seconds"])
            least = min(one["seconds"] for one in found[base][state])
            cells += [f"{best['seconds']:.2f}", f"{best['seconds'] / least:.2f}", bound(best)]
        peak = max(one["memory"] for state in found[row].values() for one in state)
        lines.append([*cells, f"{peak / 1e6:.0f}"])
    size = sum(f.stat().st_size for f in (given.work / "a").glob("*.safetensors"))
    print(f"Two bf16 models of {size / 1e9:.2f} GB. {machine()}.\n")
    heads = ["row", "cold s", "x floor", "bound by", "warm s", "x floor", "bound by", "added MB"]
    print(table(heads, lines))


def bound(one: dict[str, float]) -> str:
    """What a row waited for: the cores if they were busy most of the time, else the disk."""
    share = one["busy"] / (one["seconds"] * THREADS)
    return f"cores ({share:.0%} busy)" if share > 0.7 else f"disk (cores {share:.0%} busy)"


if __name__ == "__main__":
    main()
