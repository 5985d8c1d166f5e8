"""`manifest.json`: how a checkpoint was made, so that anyone can check and repeat it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.checkpoint.filesystem import RemoteFile
from mergekit_cl.digest import bytes_digest, weights_digest
from mergekit_cl.layout import Layout

FORMAT = "clmerge.manifest/1"


def describe_input(
    checkpoint: Checkpoint, role: str, digests: Mapping[str, str] | None
) -> dict[str, Any]:
    """One input as the manifest lists it.

    digests: of every tensor, or None if not all were read.
    """
    return {
        "path": str(checkpoint.path),
        "revision": checkpoint.revision,
        "role": role,
        "weights_digest": None
        if digests is None
        else weights_digest(_entries(checkpoint.tensors.values(), digests)),
        "files": [_describe_file(checkpoint, path) for path in checkpoint.files],
    }


def describe_output(layout: Layout, digests: Mapping[str, str], path: str) -> dict[str, Any]:
    """The output as the manifest lists it."""
    tensors = [tensor for shard in layout.shards for tensor in shard.header.tensors]
    return {
        "path": path,
        "role": "output",
        "weights_digest": weights_digest(_entries(tensors, digests)),
        "files": [
            {
                "name": shard.file,
                "bytes": shard.header.file_bytes,
                "digest": bytes_digest(shard.header.raw),
            }
            for shard in layout.shards
        ],
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {name: version(name) for name in ("clmerge", "torch", "safetensors")}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys, so that equal content is equal bytes; a tensor is a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(content) + "\n")


def json_text(content: Mapping[str, Any]) -> str:
    """JSON with sorted keys, a line for each entry of the document and of the tables in it.

    What lies deeper stays in its line: to read, to grep, and six times sooner than all indented.
    Raises ValueError for NaN and infinities.
    """
    encode = json.JSONEncoder(sort_keys=True, allow_nan=False).encode
    return _indented(content, encode, 2, "\n")


def _indented(value: Any, encode: Callable[[Any], str], depth: int, newline: str) -> str:
    if not depth or not value or not isinstance(value, (Mapping, list, tuple)):
        return encode(value)
    inner = newline + "  "
    if isinstance(value, Mapping):
        lines = [
            f"{encode(key)}: {_indented(value[key], encode, depth - 1, inner)}"
            for key in sorted(value)
        ]
        return f"{{{inner}{f',{inner}'.join(lines)}{newline}}}"
    lines = [_indented(one, encode, depth - 1, inner) for one in value]
    return f"[{inner}{f',{inner}'.join(lines)}{newline}]"


def read_manifest(side_folder: Path) -> dict[str, Any] | None:
    """The manifest in a side folder, or None where there is none this version can read."""
    try:
        found = json.loads((side_folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    if not all(key in found for key in ("command", "options", "inputs", "outputs", "tensors")):
        return None
    return found


def _entries(
    tensors: Iterable[TensorInfo], digests: Mapping[str, str]
) -> list[tuple[str, str, tuple[int, ...], str]]:
    return [(t.name, t.dtype, t.shape, digests[t.name]) for t in tensors]


def _describe_file(checkpoint: Checkpoint, path: Path | RemoteFile) -> dict[str, Any]:
    header = checkpoint.headers.get(path.name)
    if header is not None:
        description = header.raw
    else:
        # A torch file has no header of its own: what one would say of it stands in.
        listed = [[t.name, t.dtype, list(t.shape)] for t in checkpoint.tensors.values()]
        description = json.dumps(listed).encode()
    return {
        "name": path.name,
        "bytes": checkpoint.file_bytes(path),
        "digest": bytes_digest(description),
    }
