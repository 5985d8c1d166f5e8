"""How fast `clmerge verify` reads and digests, beside reading the same bytes and nothing else.

    python benchmarks/verify.py --work DIR [--gb 2] [--runs 3]

Three checkpoints of the same size, made once in DIR: one huge tensor, tensors of 16 MB, tensors of
4 KiB (at most 20,000). Floor: as many threads `pread` every byte. "cold" evicts the files from the
page cache first. Each row is the smallest of `--runs`; memory is the largest resident set of the
process, torch never being loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import evict, machine, table, touch

PIECE = 2**24
BUFFER = 2**20
SMALL = 4096


def write_model(folder: Path, sizes: list[int]) -> None:
    """Random bytes as tensors of these sizes, and a sidecar that records their digests."""
    from fisher.sidecar import FORMAT, METADATA_KEY
    from mergekit_cl.checkpoint import open_checkpoint
    from mergekit_cl.checkpoint.header import serialize
    from mergekit_cl.digesting import checkpoint_digests

    (folder / "clmerge").mkdir(parents=True)
    header = serialize([(f"w{k:06d}", "U8", (size,)) for k, size in enumerate(sizes)], {})
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(header.raw)
        left = sum(sizes)
        while left:
            left -= stream.write(os.urandom(min(PIECE, left)))
    with open_checkpoint(folder) as opened:
        tensors = {name: {"digest": d} for name, d in checkpoint_digests(opened).items()}
    said = {"format": FORMAT, "estimator": "mc", "unit": "per_example", "level": "sequence"}
    metadata = {METADATA_KEY: json.dumps({**said, "examples": 1, "tensors": tensors})}
    (folder / "clmerge/fisher.safetensors").write_bytes(serialize([], metadata).raw)


def floor(file: Path) -> float:
    """Seconds to read a file by pieces on every core."""
    descriptor = os.open(file, os.O_RDONLY)

    def read(begin: int) -> None:
        buffer = memoryview(bytearray(BUFFER))
        position, end = begin, begin + PIECE
        while position < end and (count := os.preadv(descriptor, [buffer], position)):
            position += count

    started = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(read, range(0, file.stat().st_size, PIECE)))
    os.close(descriptor)
    return time.perf_counter() - started


def one_row(row: str, folder: Path, cold: bool) -> None:
    """Run one row in this process and print its seconds and its peak memory in MB."""
    from mergekit_cl.memory import peak_memory_bytes
    from mergekit_cl.report.progress import no_progress
    from mergekit_cl.verifying import verify

    file = folder / "model.safetensors"
    (evict if cold else touch)([file])
    if row == "floor":
        took = floor(file)
    else:
        threads = 1 if row == "one thread" else None
        found = verify(folder, no_progress, threads=threads)
        assert not found.differences
        took = found.seconds
    print(json.dumps([took, (peak_memory_bytes() or 0) / 1e6]))


def measured(row: str, folder: Path, cold: bool) -> tuple[float, float]:
    """The same in a process of its own."""
    line = [sys.executable, __file__, "--row", row, "--folder", str(folder)]
    ran = subprocess.run([*line, *(["--cold"] if cold else [])], capture_output=True, check=True)
    took, peak = json.loads(ran.stdout)
    return took, peak


def main(work: Path, size: int, runs: int) -> None:
    """Time the rows in turn, so that all meet the same machine."""
    kinds = {
        "one tensor": [size],
        "of 16 MB": [16_000_000] * (size // 16_000_000),
        "of 4 KiB": [SMALL] * min(20_000, size // SMALL),
    }
    lines = []
    for kind, sizes in kinds.items():
        folder = work / f"{kind.replace(' ', '-')}-{size}"
        if not folder.exists():
            write_model(folder, sizes)
        nbytes = sum(sizes)
        for cold in (True, False):
            rows = ("floor", "verify", "one thread")
            found = [[measured(row, folder, cold) for row in rows] for _ in range(runs)]
            for k, row in enumerate(rows):
                took, peak = min(run[k] for run in found)
                base = min(run[0][0] for run in found)
                speed = nbytes / took / 1e9
                numbers = [f"{took:.2f}", f"{speed:.2f}", f"{took / base:.2f}", f"{peak:.0f}"]
                lines.append([f"{kind}, {'cold' if cold else 'warm'}", row, *numbers])
    print(f"{machine()}.\n")
    print(table(["tensors", "row", "seconds", "GB/s", "x floor", "memory MB"], lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path)
    parser.add_argument("--gb", type=float, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--row")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--cold", action="store_true")
    given = parser.parse_args()
    if given.row:
        one_row(given.row, given.folder, given.cold)
    else:
        if given.work is None:
            parser.error("--work is needed: a folder with room for twice --gb")
        main(given.work, int(given.gb * 1e9), given.runs)
