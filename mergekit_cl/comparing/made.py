"""What the merge that made a checkpoint recorded of its rounding, if it still is that checkpoint.

How much of an update survived rounding is known only while the exact update is: the merge writes it
into `divergence.json`, and here it is taken from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.divergence.layers import layer_of
from mergekit_cl.divergence.summary import FORMAT, Divergence
from mergekit_cl.divergence.verdict import ParentMetrics, TensorMetrics
from mergekit_cl.errors import ClmergeError
from mergekit_cl.recorded import MANIFEST, Recorded, parse_recorded

KEPT = ("survival", "rounding_error", "fallback")
"""Metrics that need the exact update or the kernel's own decisions."""


@dataclass(frozen=True)
class Made:
    """A merge's record. parents: {weights digest of an input: its path there}. carried: whether
    what rounding took was kept."""

    recorded: Recorded
    parents: dict[str, str]
    carried: bool
    model: dict[str, dict[str, Any]]
    layers: dict[tuple[str, str], dict[str, Any]]
    tensors: dict[tuple[str, str], dict[str, Any]]


def find_made(checkpoint: Checkpoint) -> Made | None:
    """The record beside a checkpoint; None where there is none that can be understood."""
    manifest, divergence = (checkpoint.read_beside(name) for name in (MANIFEST, "divergence.json"))
    if manifest is None or divergence is None:
        return None
    try:
        recorded = parse_recorded(manifest, Path(MANIFEST))
        document = json.loads(divergence)
        if document["format"] != FORMAT:
            return None
        return Made(
            recorded,
            {
                entry["weights_digest"]: str(entry["path"])
                for entry in recorded.content["inputs"]
                if entry["role"] == "input"
            },
            bool(recorded.content["options"].get("carry")),
            {row["parent"]: row for row in document["model_by_parent"]},
            {(row["layer"], row["parent"]): row for row in document["layers"]},
            {(row["name"], row["parent"]): row for row in document["tensors"]},
        )
    # Whatever else lies there under that name tells nothing.
    except (ClmergeError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def is_of(made: Made, checkpoint: Checkpoint, digests: Mapping[str, str]) -> bool:
    """Whether a record is of these weights; digests: of the tensors that were read."""
    listed = made.recorded.tensors
    return listed.keys() == checkpoint.tensors.keys() and all(
        listed[name].digest == digest for name, digest in digests.items()
    )


def with_recorded(divergence: Divergence, made: Made, paths: Sequence[str | None]) -> Divergence:
    """The divergence with what was recorded against the parents that `paths` name in the record.

    A layer's value, or the model's, is taken only where all tensors behind it were compared.
    """
    there = {one.path: path for one, path in zip(divergence.parents, paths, strict=True) if path}
    compared = {(row.name, there.get(row.parent)) for row in divergence.tensors}
    left_out = {key for key in made.tensors if key not in compared}
    partly = {(layer_of(name), path) for name, path in left_out}
    incomplete = {path for _, path in left_out}

    def tensor(row: TensorMetrics) -> TensorMetrics:
        path = there.get(row.parent)
        return row if path is None else _filled(row, made.tensors.get((row.name, path)))

    def layer(row: TensorMetrics) -> TensorMetrics:
        path = there.get(row.parent)
        if path is None or (row.name, path) in partly:
            return row
        return _filled(row, made.layers.get((row.name, path)))

    def model(row: ParentMetrics) -> ParentMetrics:
        path = there.get(row.parent)
        if path is None or path in incomplete:
            return row
        return replace(row, metrics=_known(row.metrics, made.model.get(path)))

    return replace(
        divergence,
        model=tuple(map(model, divergence.model)),
        layers=tuple(map(layer, divergence.layers)),
        tensors=tuple(map(tensor, divergence.tensors)),
    )


def _filled(row: TensorMetrics, recorded: Mapping[str, Any] | None) -> TensorMetrics:
    return replace(row, metrics=_known(row.metrics, recorded))


def _known(
    metrics: Mapping[str, float | None], recorded: Mapping[str, Any] | None
) -> dict[str, float | None]:
    found = {name: (recorded or {}).get(name) for name in KEPT}
    numbers = {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    }
    return {**metrics, **numbers}
