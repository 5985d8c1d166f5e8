"""Rows to fill replay buffers with, and buffers filled in a stated order."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit_cl.continual.buffer import Buffer, Policy
from mergekit_cl.training.rows import Row, make_row

Arrival = tuple[Row, str | None, str, int]
"""row, label, task, step: what `Buffer.add` takes."""


def labelled(number: int, label: str, task: str = "first", step: int = 0) -> Arrival:
    content = {"text": f"text {number}", "label": label}
    return make_row("labelled", content, f"rows.jsonl:{number + 1}"), label, task, step


def plain(number: int, task: str = "first", step: int = 0) -> Arrival:
    return (
        make_row("text", {"text": f"text {number}"}, f"rows.jsonl:{number + 1}"),
        None,
        task,
        step,
    )


def filled(
    arrivals: Sequence[Arrival], capacity: int, *, seed: int = 0, policy: Policy = "reservoir"
) -> Buffer:
    buffer = Buffer(capacity, seed, policy)
    for arrival in arrivals:
        buffer.add(*arrival)
    return buffer
