"""How much memory this process has used or may use, and giving back what it no longer does."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path


def peak_memory_bytes() -> int | None:
    """The largest resident set so far, mapped file pages included; None where unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def available_bytes() -> int | None:
    """What the system, or the control group of this process, has left; None where unknown."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # "max" is no number: no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=None)


def give_back_freed() -> None:
    """Hand freed memory back to the system, where the allocator can be asked to.

    glibc keeps freed blocks of up to 32 MiB; after a layer of them that is hundreds of megabytes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
