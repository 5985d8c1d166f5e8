"""The end of a merge: verdict, worst layers, where the output is, speed, memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergekit_cl.divergence.summary import Divergence, model_to_json, worst_layers
from mergekit_cl.divergence.verdict import TensorMetrics
from mergekit_cl.report.amounts import duration, number, size
from mergekit_cl.report.comparison import name_words
from mergekit_cl.report.text import log_line

if TYPE_CHECKING:
    from rich.table import Table

    from mergekit_cl.merging import MergeOutcome

WORST = 5


def merge_document(outcome: MergeOutcome) -> dict[str, Any]:
    """The JSON document of a merge."""
    seconds = outcome.seconds
    return {
        "command": outcome.manifest["command"],
        "state": outcome.state,
        "output": str(outcome.target),
        "weights_digest": outcome.manifest["outputs"][0]["weights_digest"],
        "verdict": outcome.manifest.get("verdict"),
        "model": None if outcome.divergence is None else model_to_json(outcome.divergence)["model"],
        "notes": list(outcome.notes),
        "seconds": round(seconds, 3),
        "bytes_per_second": round(outcome.bytes_moved / seconds) if seconds else None,
        "peak_memory_bytes": outcome.manifest.get("peak_memory_bytes"),
        "device": outcome.device,
        **_undone(outcome.manifest),
    }


def _undone(made: Mapping[str, Any]) -> dict[str, Any]:
    """Of a merge of adapters how it can be undone; of what was taken back how far from the base."""
    found: dict[str, Any] = {}
    if isinstance(undo := made.get("undo"), Mapping):
        told = {key: undo.get(key) for key in ("kind", "path", "bytes", "tensor_bytes")}
        found["undo"] = {**told, "tensors": len(undo["tensors"])}
    if "drift" in made:
        found["drift"] = made["drift"]
    return found


def print_merge(outcome: MergeOutcome) -> None:
    """The same for people, on stderr."""
    from rich.console import Console
    from rich.markup import escape

    # A log has no width: nothing is cut there.
    width = None if sys.stderr.isatty() else 10_000
    console = Console(stderr=True, highlight=False, soft_wrap=True, width=width)
    if outcome.state == "up to date":
        console.print(f"{escape(str(outcome.target))} is up to date")
        return
    if outcome.device is not None:
        console.print(f"computed on {escape(_device(outcome.device))}")
    if outcome.divergence is not None:
        console.print(layers_table(outcome.divergence))
        for one in outcome.divergence.model:
            if one.predicted_loss is not None:
                console.print(
                    f"predicted loss on {escape(one.parent)}'s data: {number(one.predicted_loss)} "
                    "nats per token (calibrated along the way to its base)"
                )
        verdict = outcome.divergence.verdict
        console.print(f"verdict: [bold]{'lossy' if verdict.lossy else 'ok'}[/bold]")
        for reason in verdict.reasons:
            console.print(f"  - {name_words(reason)}", markup=False)
        for advice in verdict.advice:
            console.print(f"  try: {name_words(advice)}", markup=False)
    if outcome.state == "refused":
        console.print("not published: --strict (--publish-anyway publishes all the same)")
    else:
        console.print(f"output: {escape(str(outcome.target))}")
    drift = outcome.manifest.get("drift") or {}
    if drift:
        console.print("not the base: tensors that had changed since, and how far they are from it")
    for name, apart in drift.items():
        told = "unknown, for want of the base" if apart is None else f"rel_l2 {number(apart)}"
        console.print(f"  {log_line(name)}  {told}", markup=False)
    undo = outcome.manifest.get("undo") or {}
    if "bytes" in undo:
        share = undo["bytes"] / max(undo["tensor_bytes"], 1)
        console.print(f"undo: {size(undo['bytes'])}, {share:.0%} of the weights it gives back")
    peak = outcome.manifest.get("peak_memory_bytes")
    console.print(
        f"{duration(outcome.seconds)}, {size(outcome.bytes_moved / outcome.seconds)}/s read and "
        f"written, peak memory {size(peak) if peak else 'unknown'}"
    )


def print_plan(plan: Mapping[str, Any]) -> None:
    """The plan of `--dry-run`, on stdout."""
    tensors = plan["tensors"]
    lines = [
        f"{plan['command']} into {plan['output']}: {tensors['merged']} tensors merged, "
        f"{tensors['copied']} copied",
        f"reads {size(plan['bytes_read'])}, writes {size(plan['bytes_written'])} "
        f"in {len(plan['files'])} files",
        f"{plan['workers']} workers with {size(plan['buffer_bytes'])} of buffers",
        f"on {_device(plan['device'])}",
        *(f"note: {note}" for note in plan["notes"]),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _device(told: Mapping[str, str]) -> str:
    return f"{told['name']}: {told['reason']}"


def layers_table(divergence: Divergence) -> Table:
    """The layers that moved most, each with the parent it moved most from."""
    from rich.table import Table
    from rich.text import Text

    rows = list(worst_layers(divergence, "rel_l2", WORST))
    by_loss = worst_layers(divergence, "predicted_kl", WORST)
    names = [*(row.name for row in rows), *(row.name for row in by_loss)]
    table = Table(title="layers that moved most", box=None, pad_edge=False, title_justify="left")
    for heading in ("layer", "from", "rel_l2", "predicted_kl", "survival", "changed"):
        text = heading in ("layer", "from")
        # A long path goes on in the next line: its end is what tells one model from another.
        table.add_column(
            heading, justify="left" if text else "right", overflow="fold", no_wrap=not text
        )
    shown = {(row.name, row.parent): row for row in [*rows, *by_loss]}
    for row in sorted(shown.values(), key=lambda row: names.index(row.name)):
        table.add_row(Text(log_line(row.name)), Text(name_words(row.parent)), *_cells(row))
    return table


def _cells(row: TensorMetrics) -> list[str]:
    kept = ("rel_l2", "predicted_kl", "survival", "changed")
    return [number(row.metrics[name]) for name in kept]
