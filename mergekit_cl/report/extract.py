"""The end of `clmerge lora-extract`: what the adapter holds of the update, and what it does not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mergekit_cl.divergence.layers import layer_of
from mergekit_cl.lora.extracting import totals
from mergekit_cl.lora.keymap import modern
from mergekit_cl.report.amounts import duration, number, size
from mergekit_cl.report.text import log_line

SHOWN = 40


def extract_document(made: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document; errors are relative Frobenius norms of what is not held."""
    tensors = sorted(made["extracted"], key=lambda one: str(one["name"]))
    layers: dict[str, list[Mapping[str, Any]]] = {}
    for one in tensors:
        layers.setdefault(layer_of(one["name"]), []).append(one)
    return {
        "command": "lora-extract",
        "state": made["state"],
        "output": made["outputs"][0]["path"],
        "error": totals(tensors),
        "error_of_factors": totals([one for one in tensors if one["kept"] == "factors"]),
        "layers": [{"layer": layer, "error": totals(own)} for layer, own in layers.items()],
        "tensors": tensors,
        "notes": _notes(tensors),
        "left_out": [one["name"] for one in tensors if one["kept"] == "left out"],
        "seconds": made["seconds"],
    }


def print_extract(document: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """The same for people."""
    if document["state"] == "up to date":
        say(f"{document['output']} is up to date")
        return
    say("error by layer (relative to the layer's update):")
    for one in document["layers"][:SHOWN]:
        say(f"  {log_line(one['layer'])}  {number(one['error'])}")
    more = len(document["layers"]) - SHOWN
    if more > 0:
        say(f"  and {more} more (--json has all)")
    left = document["left_out"]
    if left:
        say(f"left out: {len(left)} tensors that changed")
        for why, names in _by_reason(document["tensors"]).items():
            rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
            say(f"  {', '.join(map(log_line, names[:3]))}{rest}: {why}")
    for note in document["notes"]:
        say(f"note: {note}")
    say(
        f"error: {number(document['error'])} of the whole update, "
        f"{number(document['error_of_factors'])} of what is factored"
    )
    say(f"output: {document['output']}, {duration(document['seconds'])}")


def _by_reason(tensors: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in tensors:
        if one["kept"] == "left out":
            found.setdefault(one["why"], []).append(one["name"])
    return found


def _notes(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [one["name"] for one in tensors if one["kept"] != "left out"]
    other = [name for name in names if modern(name) != name]
    if not other:
        return []
    return [
        f"{len(other)} names are those of the file, {other[0]} for one; versions of transformers "
        "differ in them, and PEFT needs the model's own (lora-merge takes either)"
    ]


def print_extract_plan(plan: Mapping[str, Any]) -> None:
    """The plan of `--dry-run`, on stdout."""
    sys.stdout.write(
        f"lora-extract into {plan['output']}: {plan['factored']} weights may be factored, "
        f"{plan['others']} others compared, on {plan['device']}, "
        f"{size(plan['buffer_bytes'])} of memory for the largest\n"
    )
