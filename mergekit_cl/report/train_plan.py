"""The plan of `clmerge train --dry-run`, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mergekit_cl.report.amounts import number, size
from mergekit_cl.report.text import columns, print_lines, shown


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print it on stdout."""
    print_lines(list(plan_lines(plan)))


def plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """What is trained, on which rows, in what memory, and whether the gate can decide."""
    counts, held = plan["parameters"], plan["memory_bytes"]
    share = counts["trained"] / counts["all"]
    yield f"train {shown(plan['model'])} into {shown(plan['output'])}"
    yield f"{counts['trained']:,} of {counts['all']:,} weights are trained ({share:.2%})"
    parts = [f"{name} {size(count)}" for name, count in held.items() if count and name != "total"]
    yield f"holds {size(held['total'])} besides activations: {', '.join(parts)}"
    yield f"writes up to {size(plan['disk_bytes'])}"
    if count := plan["snapshots"]["count"]:
        yield (
            f"of it {size(plan['snapshots']['bytes'])} are {count} snapshots of averages, from "
            "which clmerge ema-average makes others"
        )
    yield ""
    yield from _tasks(plan)
    if plan["trials"]:
        yield f"before it, {plan['trials']} shorter or equal runs find ewc.lambda"
    if plan["buffer_rows"]:
        yield f"the replay buffer keeps {plan['buffer_rows']} rows"
    rows = sum(plan["evaluation"]["rows"].values())
    yield f"{rows} rows are evaluated {plan['evaluation']['times']} times"
    if plan["gate"] is not None:
        yield from _gate(plan["gate"])
    yield from (f"note: {shown(note)}" for note in plan["notes"])
    yield from (f"warning: {shown(warning)}" for warning in plan["warnings"])


def _tasks(plan: Mapping[str, Any]) -> Iterator[str]:
    head = ("task", "rows", "tokens", "cut", "held out", "steps", "epochs")
    keys = ("rows", "tokens", "truncated", "validation_rows", "steps", "epochs")
    lines = [(shown(task["name"], 40), *(f"{task[k]:,}" for k in keys)) for task in plan["tasks"]]
    yield from columns([head, *lines], right=frozenset(range(1, len(head))))


def _gate(gate: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield (
        f"the gate: at most {gate['margin']:g} nats per token worse, at alpha {gate['alpha']:g}, "
        f"{gate['looks']} look{'s' if gate['looks'] > 1 else ''}"
    )
    head = ("suite", "rows", "power", "last look", "rows for 80 %")
    lines = [
        (
            shown(one["suite"], 40),
            f"{one['rows']:,}",
            f"{one['power']:.0%}",
            f"{one['power_of_last_look']:.0%}",
            f"{one['rows_needed']:,}",
        )
        for one in gate["suites"]
    ]
    yield from columns([head, *lines], right=frozenset(range(1, len(head))))
    source = "measured on the model" if gate["spread_measured"] else "assumed, not measured"
    yield (
        "power: how likely an update that is no worse is accepted, if rows' losses spread by "
        f"{number(gate['spread'])} nats per token ({source}) and their changes by "
        f"{gate['assumed_change']:g} times that (assumed)"
    )
