"""Bars of a table on a terminal, a pager or a log."""

from __future__ import annotations

import sys


def bar(share: float, width: int) -> str:
    """A bar of a share of `width` characters, of at least one where the share is above 0."""
    return filled() * max(1, round(width * share)) if share > 0 else ""


def filled() -> str:
    """The character a bar is made of: one that stdout can print."""
    try:
        "█".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return "#"
    return "█"
