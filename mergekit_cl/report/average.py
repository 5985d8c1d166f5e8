"""The end of `clmerge ema-average`: which average it is, and how near to the one asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mergekit_cl.report.amounts import duration, number, size
from mergekit_cl.report.text import print_lines, shown


def average_document(made: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document."""
    output = made["outputs"][0]
    return {
        "command": "ema-average",
        "state": made["state"],
        "output": output["path"],
        "weights_digest": output["weights_digest"],
        "half_life": made["options"]["half_life"],
        **made["average"],
        "seconds": made["seconds"],
        "peak_memory_bytes": made["peak_memory_bytes"],
    }


def print_average(document: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """The same for people."""
    if document["state"] == "up to date":
        say(f"{shown(document['output'])} is up to date")
        return
    for line in _lines(document):
        say(line)
    say(f"output: {shown(document['output'])}, {duration(document['seconds'])}")


def print_average_plan(plan: Mapping[str, Any]) -> None:
    """The plan of `--dry-run`, on stdout."""
    print_lines(
        [
            f"ema-average of {shown(plan['run'])} into {shown(plan['output'])}",
            *_lines(plan),
            f"reads {size(plan['bytes_read'])}, writes {size(plan['bytes_written'])}, "
            f"{size(plan['memory_bytes'])} of memory",
        ]
    )


def _lines(said: Mapping[str, Any]) -> Iterator[str]:
    low, high = said["half_lives"]
    snapshots = len({one["step"] for one in said["parts"]})
    yield (
        f"half-life {said['half_life']:g} steps at step {said['step']}, of {snapshots} "
        f"snapshot{'s' if snapshots > 1 else ''} (they give {low:g} to {high:g})"
    )
    yield (
        f"residual: {number(said['residual'])}, by which the weighting of the steps is off, "
        "relative to it"
    )
