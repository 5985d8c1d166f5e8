"""The plan of `clmerge fisher --dry-run`, for people."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from mergekit_cl.report.amounts import duration, size


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print it on stdout."""
    sys.stdout.write("".join(f"{line}\n" for line in plan_lines(plan)))


def plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """What will be written, from which rows, with how much memory and in what time."""
    rows = f"at most {plan['rows_at_most']} rows" if plan["rows"] is None else _rows(plan)
    yield f"fisher into {plan['output']}: {plan['tensors']} tensors, {rows}"
    if passes := plan["passes"]:
        yield from _passes(plan["rows"], passes, plan["streaming"])
    yield (
        f"reads {size(plan['bytes_read'])}, writes {size(plan['bytes_written'])}, holds "
        f"{size(plan['memory_bytes'])} {_held(plan)}"
    )
    if streaming := plan["streaming"]:
        yield from _waiting(streaming)
    if plan["expected_seconds"] is not None:
        yield f"about {duration(plan['expected_seconds'])} for the rows, judged by one batch"
    yield from (f"note: {note}" for note in plan["notes"])


def _rows(plan: Mapping[str, Any]) -> str:
    if not plan["rows"]:
        return "no rows"
    return f"{plan['rows']} rows in batches of up to {plan['batch_size']}"


def _passes(rows: int, passes: Mapping[str, int], streaming: Any) -> Iterator[str]:
    if rows:
        through = f"each of {streaming['layers']} layers" if streaming else "the model"
        forward, backward = _times(passes["forward"]), _times(passes["backward"])
        yield f"every row goes through {through} {forward} forward and {backward} backward"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _held(plan: Mapping[str, Any]) -> str:
    """What else is: activations, where they are known."""
    if plan["activations_bytes"] is None:
        return "besides activations"
    if not plan["rows"]:
        return "at most"
    return f"and about {size(plan['activations_bytes'])} of one batch's activations"


def _waiting(streaming: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"at once: a layer with its Fisher, {size(streaming['layer_bytes'])}, or embeddings or "
        f"head with theirs, {size(streaming['outside_bytes'])}"
    )
    yield (
        f"between layers: {size(streaming['boundary_bytes'])} of activations wait in "
        f"{streaming['boundaries']}; temporary files take {size(streaming['temporary_bytes'])}"
    )
