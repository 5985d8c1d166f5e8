"""Whether memory stays flat and time per GB even, from half a GB to far beyond memory.

    python benchmarks/merge_sizes.py --work DIR [--gigabytes 0.5,2,8,24]

Each row merges two bf16 models that hold so many GB together, cold, without a report, in a process
of its own. The last rows are of one shape: 20,000 tensors of 4 KiB, beside the script that loads
everything, whose torch is loaded before its clock starts; and one tensor of 8 GiB merged with
itself (4.3 billion entries). A size is made, merged and removed before the next; one for which the
disk has no room, half as much again as its inputs, is left out with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import evict, lacks_room, machine, table

LAYER = 88.1e6  # bytes of one layer of benchmarks/synthetic.py
FIXED = 262e6  # bytes of its embedding and head
CHILD = """
import gc, json, sys, time
from pathlib import Path
gc.set_threshold(100_000)  # as the command does
from benchmarks.measuring import Peak
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.merging import OutputOptions, run_merge
from mergekit_cl.methods.linear import linear_method
from mergekit_cl.report.progress import no_progress
with Peak() as peak:
    started = time.perf_counter()
    models = [open_checkpoint(Path(path)) for path in sys.argv[1:3]]
    method = linear_method(models, weights=None, normalize=True, base=None, sidecars=[None, None])
    run_merge(method, OutputOptions(Path(sys.argv[3]), report=False), no_progress)
    seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "memory": peak.largest - peak.before, "peak": peak.largest}))
"""
LOAD_ALL = """
import json, sys, time
from pathlib import Path
from safetensors.torch import load_file, save_file
from benchmarks.measuring import Peak
with Peak() as peak:
    started = time.perf_counter()
    a, b = (load_file(Path(path) / "model.safetensors") for path in sys.argv[1:3])
    merged = {key: (a[key].float() * 0.5 + b[key].float() * 0.5).bfloat16() for key in a}
    Path(sys.argv[3]).mkdir()
    save_file(merged, Path(sys.argv[3]) / "model.safetensors")
    seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "memory": peak.largest - peak.before, "peak": peak.largest}))
"""


def measure(row: str, inputs: list[Path], out: Path, child: str = CHILD) -> list[str]:
    """One row of the table; inputs are evicted first."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    files = [file for folder in inputs for file in sorted(folder.glob("*.safetensors"))]
    evict(files)
    root = str(Path(__file__).resolve().parents[1])
    printed = subprocess.run(
        [sys.executable, "-c", child, *map(str, inputs), str(out)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
    )
    shutil.rmtree(out, ignore_errors=True)
    found = json.loads(printed.stdout)
    gigabytes = sum(file.stat().st_size for file in files) / 1e9
    seconds, memory = found["seconds"], (found["memory"], found["peak"])
    megabytes = [f"{nbytes / 1e6:.0f}" for nbytes in memory]
    return [row, f"{seconds:.1f}", f"{seconds / gigabytes:.2f}", *megabytes]


def write_many(folder: Path, seed: int) -> None:
    """20,000 tensors of 4 KiB."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(20_000, 2048, generator=generator).bfloat16()
    tensors = {f"layers.{i // 20}.t{i % 20}": values[i].clone() for i in range(20_000)}
    save_file(tensors, folder / "model.safetensors")


def write_huge(folder: Path) -> None:
    """One tensor of 8 GiB."""
    import numpy as np

    folder.mkdir(parents=True)
    size = 2**33
    header = {"w": {"dtype": "BF16", "shape": [2**16, 2**16], "data_offsets": [0, size]}}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    # Bytes of finite bf16 values: the exponent's upper bit stays 0.
    noise = np.random.default_rng(0).integers(0, 2**15, 2**23, dtype=np.uint16) & 0x3FFF
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for _ in range(size // noise.nbytes):
            stream.write(noise.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gigabytes", default="0.5,2,8,24")
    parser.add_argument("--shapes", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    from benchmarks.synthetic import write_model

    work: Path = given.work.resolve()
    rows = []
    for text in filter(None, given.gigabytes.split(",")):
        if (reason := lacks_room(work, int(1.5e9 * float(text)))) is not None:
            rows.append([f"{text} GB of inputs", reason, "", "", ""])
            continue
        layers = max(1, round((float(text) * 1e9 / 2 - FIXED) / LAYER))
        inputs = [work / f"size-{name}" for name in "ab"]
        for seed, folder in enumerate(inputs):
            shutil.rmtree(folder, ignore_errors=True)
            write_model(folder, layers, seed)
        rows.append(measure(f"{text} GB of inputs", inputs, work / "out"))
        for folder in inputs:
            shutil.rmtree(folder)
    if given.shapes:
        inputs = [work / f"many-{name}" for name in "ab"]
        for seed, folder in enumerate(inputs):
            shutil.rmtree(folder, ignore_errors=True)
            write_many(folder, seed)
        rows.append(measure("20,000 tensors of 4 KiB", inputs, work / "out"))
        rows.append(measure("the same, load everything", inputs, work / "out", LOAD_ALL))
        for folder in inputs:
            shutil.rmtree(folder)
        huge = work / "huge"
        shutil.rmtree(huge, ignore_errors=True)
        reason = lacks_room(work, 2 * 2**33)
        if reason is None:
            write_huge(huge)
            rows.append(measure("one tensor of 8 GiB", [huge, huge], work / "out"))
            shutil.rmtree(huge)
        else:
            rows.append(["one tensor of 8 GiB", reason, "", "", ""])
    print(f"{machine()}.\n")
    heads = ["inputs", "seconds", "seconds per GB read", "memory added MB", "peak MB"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
