"""Rounding residuals kept beside a 16-bit checkpoint, so that small updates add up.

`clmerge/carry.safetensors` holds, for every 16-bit tensor, exact value minus rounded value in
float32. The next merge starts from their sum, which is the exact value again: a float32 minus its
16-bit rounding needs no more than float32's bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.checkpoint.header import serialize
from mergekit_cl.errors import FormatError, MismatchError
from mergekit_cl.layout import Layout, Shard, TensorShape

FILE = "carry.safetensors"
METADATA_KEY = "clmerge.carry"
FORMAT = "clmerge.carry/1"
UNKNOWN_DIGEST = "0" * 64
"""Stands in the header until the weights are written; the digest has the same length."""


@dataclass(frozen=True)
class Carry:
    """Residuals of one checkpoint. weights_digest: of the weights they belong to."""

    checkpoint: Checkpoint
    weights_digest: str
    updates: int


def find_carry(model: Checkpoint) -> Carry | None:
    """The residuals beside a model, or None; raises FormatError where the file is another thing."""
    path = model.beside(FILE)
    if path is None:
        return None
    opened = open_checkpoint(path)
    try:
        said = json.loads(opened.metadata[METADATA_KEY])
        if said["format"] != FORMAT:
            raise ValueError(said["format"])
        return Carry(opened, str(said["weights_digest"]), int(said["updates"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            "the file holds no rounding residuals this version can read",
            detail=f"{opened.path}: {error}",
            hint="remove it to go on without them",
        ) from error


def carry_layout(tensors: list[TensorShape], updates: int) -> Layout:
    """The file for the residuals of these output tensors: those of 16 bits, as float32."""
    kept = [(name, "F32", shape) for name, dtype, shape in tensors if dtype in ("BF16", "F16")]
    header = serialize(kept, _metadata(UNKNOWN_DIGEST, updates))
    return Layout((Shard(FILE, header),), f"{FILE}.index.json", None)


def sealed_header(layout: Layout, weights_digest: str, updates: int) -> bytes:
    """The same header with the digest of the weights that were written; of the same length."""
    header = layout.shards[0].header
    kept = [(tensor.name, tensor.dtype, tensor.shape) for tensor in header.tensors]
    return serialize(kept, _metadata(weights_digest, updates)).raw


def check_fresh(carry: Carry, found: str | None, model: Checkpoint) -> None:
    """Raise MismatchError unless the residuals belong to the weights that were read."""
    if found != carry.weights_digest:
        raise MismatchError(
            "rounding residuals belong to other weights",
            detail=f"{carry.checkpoint.path}: {model.path} has changed since they were written",
            hint="remove that file to go on without them",
        )


def recorded_updates(manifest: Mapping[str, Any] | None) -> int:
    """How many EMA updates a state has had, by its manifest; 0 where it says nothing."""
    found = (manifest or {}).get("updates")
    return found if isinstance(found, int) else 0


def _metadata(digest: str, updates: int) -> dict[str, str]:
    said = {"format": FORMAT, "weights_digest": digest, "updates": updates}
    return {METADATA_KEY: json.dumps(said, sort_keys=True), "format": "pt"}
