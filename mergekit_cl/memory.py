"""How much memory this process has used."""

from __future__ import annotations

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
