"""Tensors counted: how many, of which dtype, how large, where."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.dtypes import BITS

LARGEST = 5

Described = tuple[str, str, tuple[int, ...], str]  # name, dtype, shape, file


def tensors_of(checkpoint: Checkpoint) -> list[Described]:
    """Every tensor of an opened checkpoint, in file order."""
    return [
        (name, tensor.dtype, tensor.shape, checkpoint.file_of(name).name)
        for name, tensor in checkpoint.tensors.items()
    ]


def files_of(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Name, format and bytes of every weight file."""
    found = []
    for file in checkpoint.files:
        header = checkpoint.headers.get(file.name)
        if header is not None:
            kind, nbytes = "safetensors", header.file_bytes
        else:
            assert isinstance(file, Path)  # torch files are read from this disk only
            kind, nbytes = "torch", file.stat().st_size
        found.append({"name": file.name, "format": kind, "bytes": nbytes})
    return found


def count_tensors(tensors: Iterable[Described]) -> dict[str, Any]:
    """Parameters, bytes, tensors per dtype (most bytes first), the largest, and all of them."""
    counts: dict[str, list[int]] = {}
    sized: list[tuple[int, int]] = []
    listed: list[dict[str, Any]] = []
    for name, dtype, shape, file in tensors:
        numel = math.prod(shape)
        nbytes = numel * BITS.get(dtype, 0) // 8
        count = counts.setdefault(dtype, [0, 0, 0])
        count[0] += 1
        count[1] += numel
        count[2] += nbytes
        sized.append((-nbytes, len(sized)))
        listed.append({"name": name, "dtype": dtype, "shape": shape, "file": file})
    ranked = sorted(counts.items(), key=lambda item: (-item[1][2], item[0]))
    return {
        "parameters": sum(count[1] for count in counts.values()),
        "tensor_bytes": sum(count[2] for count in counts.values()),
        "dtypes": [
            {"dtype": dtype, "tensors": count, "parameters": numel, "bytes": nbytes}
            for dtype, (count, numel, nbytes) in ranked
        ],
        "largest": [{**listed[place], "bytes": -size} for size, place in sorted(sized)[:LARGEST]],
        "tensors": listed,
    }
