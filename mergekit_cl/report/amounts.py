"""Numbers as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes with a decimal unit: '2.20 GB'."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def amount(count: float, unit: str) -> str:
    """Bytes by `size`, anything else as a number with its unit."""
    if unit == "bytes":
        return size(count)
    return f"{count:.0f} {unit}" if count >= 10 or count == int(count) else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """'0.4 s', '3 min 20 s', '2 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def number(value: float | None) -> str:
    """A metric: three significant digits, or a dash where it is undefined."""
    if value is None:
        return "-"
    return f"{value:.3g}"
