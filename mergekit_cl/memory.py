"""How much memory this process has used, and giving back what it no longer does."""

from __future__ import annotations

import ctypes
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


def give_back_freed() -> None:
    """Hand freed memory back to the system, where the allocator can be asked to.

    glibc keeps freed blocks of up to 32 MiB; after a layer of them that is hundreds of megabytes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
