"""The end of `clmerge fisher`: what was estimated, from how much, how sure it is."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.estimating.place import memory_needed, sidecar_target
from mergekit_cl.estimating.request import FisherOutcome, FisherRequest
from mergekit_cl.report.amounts import duration, size


def fisher_document(outcome: FisherOutcome) -> dict[str, Any]:
    """The JSON document of a sidecar; `trace` is the sum of all entries."""
    said = outcome.metadata
    trace, error = trace_and_error(said)
    kept = ("estimator", "draws", "level", "unit", "examples", "tokens", "mean_nll", "missing")
    return {
        "command": "fisher",
        "state": outcome.state,
        "output": str(outcome.target),
        **{key: said.get(key) for key in kept},
        "weights_digest": said.get("weights_digest"),
        "data_digest": said.get("data_digest"),
        "trace": trace,
        "trace_standard_error": error,
        "notes": list(outcome.notes),
        "seconds": round(outcome.seconds, 3),
    }


def trace_and_error(metadata: Mapping[str, Any]) -> tuple[float, float | None]:
    """Sum over all tensors, and a bound on its standard error: tensors may err together."""
    tensors = metadata["tensors"].values()
    errors = [entry.get("standard_error") for entry in tensors]
    known = [error for error in errors if error is not None]
    total = math.fsum(entry["sum"] for entry in tensors)
    return total, math.fsum(known) if known and len(known) == len(errors) else None


def print_fisher(outcome: FisherOutcome) -> None:
    """The same for people, on stderr."""
    if outcome.state == "up to date":
        lines = [f"{outcome.target} is up to date"]
    else:
        said = outcome.metadata
        trace, error = trace_and_error(said)
        sure = f" (at most {error / trace:.0%} standard error)" if error and trace else ""
        nll = said.get("mean_nll")
        loss = "" if nll is None else f", {nll:.3f} nats per token"
        source = f"{said['examples']} rows, {said['tokens']} tokens{loss}"
        unit = "per row"
        if said["unit"] == "optimizer":
            source = f"a saved optimizer after {said['optimizer']['steps']} steps"
            unit = "of squared batch gradients; it compares with its own kind alone"
        lines = [
            f"{said['estimator']} Fisher of {len(said['tensors'])} tensors from {source}",
            f"trace {trace:.4g} {unit}{sure}",
            *_missing(said["missing"]),
            f"output: {outcome.target} ({size(outcome.nbytes)}), {duration(outcome.seconds)}",
        ]
    sys.stderr.write("\n".join(lines) + "\n")


def plan_document(request: FisherRequest) -> dict[str, Any]:
    """What `--dry-run` prints, from headers; the data's files are looked for, not read."""
    from mergekit_cl.training.files import find_files

    if request.optimizer is None:
        find_files(request.data)
    with open_checkpoint(request.model) as checkpoint:
        chosen = [
            t for t in checkpoint.tensors.values() if t.is_float and t.name in request.selection
        ]
        elements = sum(tensor.numel for tensor in chosen)
        return {
            "command": "fisher",
            "output": str(sidecar_target(checkpoint, request.target)),
            "tensors": len(chosen),
            "bytes_read": checkpoint.nbytes,
            "bytes_written": elements * (2 if request.store_dtype == "BF16" else 4),
            "memory_bytes": memory_needed(request, checkpoint),
            "rows_at_most": request.samples if request.optimizer is None else 0,
        }


def print_plan(plan: Mapping[str, Any]) -> None:
    """The plan for people, on stdout."""
    sys.stdout.write(
        f"fisher into {plan['output']}: {plan['tensors']} tensors, at most "
        f"{plan['rows_at_most']} rows\n"
        f"reads {size(plan['bytes_read'])}, writes {size(plan['bytes_written'])}, holds "
        f"{size(plan['memory_bytes'])} besides activations\n"
    )


def _missing(missing: Mapping[str, str]) -> list[str]:
    reasons: dict[str, int] = {}
    for reason in missing.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return [f"without Fisher: {count} {reason}" for reason, count in sorted(reasons.items())]
