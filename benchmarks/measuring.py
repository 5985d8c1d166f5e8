"""What the benchmarks share: the machine in words, the page cache, time and memory of commands."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

PIECE = 2**22
SPARE = 10**9
"""Bytes of a disk that benchmarks leave free."""


def machine() -> str:
    """Processor, cores, memory, system and date, in a line."""
    processor = platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    total = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if "MemTotal" in line)
    cores = len(os.sched_getaffinity(0))
    return (
        f"{processor}, {cores} cores, {total / 2**20:.0f} GiB, "
        f"{platform.system()} {platform.release().split('-')[0]}, {date.today().isoformat()}"
    )


def evict(files: Iterable[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def touch(files: Iterable[Path]) -> None:
    """Read files into the page cache."""
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.read(PIECE):
                pass


def lacks_room(folder: Path, nbytes: int) -> str | None:
    """Why so many bytes cannot be written below a folder, which is made; None where they can."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free >= nbytes + SPARE:
        return None
    return f"skipped: {(nbytes + SPARE) / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} are free"


def processor_seconds() -> float:
    """What this process and its ended children have used of all cores, in user and system mode."""
    return sum(os.times()[:4])


def anonymous(process: int | str = "self") -> int:
    """Bytes of anonymous memory a process holds; 0 if it is gone."""
    for line in _lines(f"/proc/{process}/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


class Peak:
    """The most anonymous memory of a process and its children, looked at every 10 ms."""

    def __init__(self, process: int | None = None) -> None:
        self.process = process or os.getpid()
        self.before = self.largest = self._now()
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample)

    def __enter__(self) -> Peak:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._done.wait(0.01):
            self.largest = max(self.largest, self._now())

    def _now(self) -> int:
        return sum(map(anonymous, family(self.process)))


def family(process: int) -> list[int]:
    """A process and all its children."""
    found = [process]
    for one in found:
        for line in _lines(f"/proc/{one}/task/{one}/children"):
            found += [int(child) for child in line.split()]
    return found


@dataclass(frozen=True)
class Cost:
    """seconds until the command ended, seconds a sync took after it, peak anonymous bytes."""

    seconds: float
    sync: float
    memory: int


def run_command(command: list[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end; its output is shown only if it fails."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    with Peak(process.pid) as peak:
        printed, _ = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{printed[-2000:]}")
    started = time.perf_counter()
    os.sync()
    return Cost(seconds, time.perf_counter() - started, peak.largest)


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
