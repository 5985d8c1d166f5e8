"""The end of `clmerge fisher`: what was estimated, from how much, how sure it is."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from mergekit_cl.estimating.request import FisherOutcome
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
        "sampling": said.get("sampling"),
        "calibration": said.get("calibration"),
        "calibrated": said.get("calibrated"),
        "notes": list(outcome.notes),
        "seconds": round(outcome.seconds, 3),
    }


def trace_and_error(metadata: Mapping[str, Any]) -> tuple[float, float | None]:
    """Sum over all tensors, and its standard error over examples where that is known."""
    total = math.fsum(entry["sum"] for entry in metadata["tensors"].values())
    return total, metadata.get("trace_standard_error")


def least_sure(metadata: Mapping[str, Any]) -> tuple[str, float] | None:
    """The tensor whose sum has the largest relative standard error, and that error."""
    known = [
        (entry["standard_error"] / entry["sum"], name)
        for name, entry in metadata["tensors"].items()
        if entry.get("standard_error") is not None and entry["sum"] > 0
    ]
    if not known:
        return None
    error, name = max(known)
    return name, error


def print_fisher(outcome: FisherOutcome) -> None:
    """The same for people, on stderr."""
    if outcome.state == "up to date":
        lines = [f"{outcome.target} is up to date"]
    else:
        said = outcome.metadata
        trace, _ = trace_and_error(said)
        nll = said.get("mean_nll")
        loss = "" if nll is None else f", {nll:.3f} nats per token"
        source = f"{said['examples']} rows, {said['tokens']} tokens{loss}"
        unit = "per row"
        if said["unit"] == "optimizer":
            source = f"a saved optimizer after {said['optimizer']['steps']} steps"
            unit = "of squared batch gradients; it compares with its own kind alone"
        lines = [
            f"{said['estimator']} Fisher of {len(said['tensors'])} tensors from {source}",
            f"trace {trace:.4g} {unit}{how_sure(said)}",
            *_stopped(said.get("sampling"), said.get("examples", 0)),
            *calibration_lines(said),
            *_missing(said["missing"]),
            f"output: {outcome.target} ({size(outcome.nbytes)}), {duration(outcome.seconds)}",
        ]
    sys.stderr.write("\n".join(lines) + "\n")


def how_sure(metadata: Mapping[str, Any]) -> str:
    """How well the trace is known, and which tensor is known least, as the end of a line."""
    if "sampling" not in metadata:
        return ""
    error = metadata["sampling"]["relative_standard_error"]
    if error is None:
        return ", with no way to tell how sure: that takes two rows"
    worst = least_sure(metadata)
    tensor = "" if worst is None else f"; least sure: {worst[0]}, ±{worst[1]:.1%}"
    return f", known to ±{error:.1%} (one standard error){tensor}"


def calibration_lines(metadata: Mapping[str, Any]) -> list[str]:
    """What was measured against the base, and what may be made of it."""
    found = metadata.get("calibrated")
    if found is None:
        return []
    measured, expected = found["measured_per_token"], found["predicted_per_token"]
    lines = [
        f"divergence from the base: measured {measured:.4g} nats per token, "
        f"predicted {expected:.4g} from the diagonal alone"
    ]
    if metadata["calibration"] is None:
        return [*lines, "not calibrated: the Fisher is 0 wherever the two models differ"]
    return [
        *lines,
        f"calibration {metadata['calibration']:.3g} (measured over predicted). It holds along the "
        "way to the base and at that distance;",
        "the loss predicted for a merge that goes another way may be off by as much as the "
        "diagonal alone is",
    ]


def _stopped(sampling: Mapping[str, Any] | None, examples: int) -> list[str]:
    """Whether the asked standard error was reached, where one was asked for."""
    if sampling is None or sampling["target_se"] is None:
        return []
    target, needed = sampling["target_se"], sampling["examples_needed"]
    if sampling["stopped"] == "target":
        return [f"stopped after {examples} rows: the asked ±{target:.2%} is reached"]
    limit = "--samples" if sampling["stopped"] == "samples" else "different rows"
    more = "" if needed is None else f": about {needed} rows would be needed"
    return [f"the asked ±{target:.2%} is not reached within {examples} rows ({limit}){more}"]


def _missing(missing: Mapping[str, str]) -> list[str]:
    reasons: dict[str, int] = {}
    for reason in missing.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return [f"without Fisher: {count} {reason}" for reason, count in sorted(reasons.items())]
