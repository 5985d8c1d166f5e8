"""A finished estimate, described and moved into its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.dtypes import long_name
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.estimating.store import store
from mergekit_cl.layout import Layout
from mergekit_cl.manifest import versions
from mergekit_cl.output.staging import Staging

if TYPE_CHECKING:
    from torch import Tensor

    from fisher.accumulator import Estimate
    from mergekit_cl.training.encode import Encoded
    from mergekit_cl.training.model import BuiltModel


def describe_estimate(
    request: FisherRequest,
    checkpoint: Checkpoint,
    built: BuiltModel,
    encoded: Encoded,
    estimate: Estimate,
    described: dict[str, Any],
) -> dict[str, Any]:
    """The metadata of docs/sidecar.md but for the statistics per tensor."""
    return {
        **described,
        "estimator": estimate.estimator,
        "draws": estimate.draws,
        "level": "sequence" if built.kind == "causal-lm" else "example",
        "unit": "per_example",
        "examples": estimate.examples,
        "tokens": estimate.tokens,
        "max_length": encoded.max_length,
        "seed": request.seed,
        "mean_nll": estimate.mean_nll,
        "trace_standard_error": estimate.trace_standard_error,
        "missing": whole_missing(request, checkpoint, built, estimate.missing),
        "tied": dict(built.tied),
        "calibration": None,
        "calibrated": None,
        "compute_dtype": long_name(request.compute_dtype),
        "versions": versions(),
    }


def whole_missing(
    request: FisherRequest, checkpoint: Checkpoint, built: BuiltModel, reasons: Mapping[str, str]
) -> dict[str, str]:
    """{file tensor: why it has no Fisher}; reasons: those of parameters."""
    missing = dict(built.missing)
    for parameter, reason in reasons.items():
        missing.update(dict.fromkeys(built.files_of(parameter), reason))
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_float and name not in request.selection:
            missing.setdefault(name, "excluded")
    return missing


def publish_estimate(
    request: FisherRequest,
    checkpoint: Checkpoint,
    built: BuiltModel,
    estimate: Estimate,
    metadata: dict[str, Any],
    digests: dict[str, str],
    staging: Staging,
    replaced: Sequence[Path],
) -> dict[str, Any]:
    """Write and move an estimate's sidecar into its place; see `publish_values`."""
    errors = standard_errors(built, estimate)
    described = {
        name: {"digest": digests[name], "standard_error": errors.get(name)}
        for name in checkpoint.tensors
    }
    diagonal = built.by_file(estimate.diagonal)
    return publish_values(request, checkpoint, diagonal, metadata, described, staging, replaced)


def publish_values(
    request: FisherRequest,
    checkpoint: Checkpoint,
    diagonal: Iterable[tuple[str, Tensor]],
    metadata: dict[str, Any],
    described: Mapping[str, Mapping[str, Any]],
    staging: Staging,
    replaced: Sequence[Path],
) -> dict[str, Any]:
    """Write, then move the sidecar into its place; returns its whole metadata.

    diagonal: (file tensor, values); what is not selected is left out. described: what is known of
    each tensor. replaced: files of the sidecar that was there before.
    """

    layout, whole = store(
        staging.out,
        checkpoint,
        ((name, values) for name, values in diagonal if name in request.selection),
        metadata,
        described,
        dtype=request.store_dtype,
        stem=staging.target.name.removesuffix(".safetensors"),
        shard_size=request.shard_size,
    )
    move_into_place(layout, staging, replaced)
    return whole


def move_into_place(layout: Layout, staging: Staging, replaced: Sequence[Path]) -> None:
    """Publish the finished files of a sidecar, and remove what is left of the one before."""
    names = [shard.file for shard in layout.shards]
    names += [layout.index_name] if layout.index is not None else []
    staging.publish_over(staging.target.parent, tuple(names))
    for leftover in replaced:
        if leftover.name not in names:
            leftover.unlink(missing_ok=True)


def standard_errors(built: BuiltModel, estimate: Estimate) -> dict[str, float | None]:
    """By file tensor, where a parameter is one whole tensor of the file; else unknown."""
    return {
        built.names[parameter]: error
        for parameter, error in estimate.standard_error.items()
        if parameter in built.names
    }
