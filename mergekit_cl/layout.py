"""Which file and which offset every output tensor gets, before any of it is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekit_cl.checkpoint.dtypes import BITS
from mergekit_cl.checkpoint.header import Header, serialize

TensorShape = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


@dataclass(frozen=True)
class Shard:
    """One weight file: its name and its exact header."""

    file: str
    header: Header


@dataclass(frozen=True)
class Layout:
    """The weight files of an output and, where there are several, the index that joins them."""

    shards: tuple[Shard, ...]
    index_name: str
    index: bytes | None

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(shard.header.file_bytes for shard in self.shards)


def lay_out(
    tensors: Sequence[TensorShape],
    *,
    stem: str,
    shard_size: int,
    metadata: Mapping[str, str],
    header_bytes: Sequence[int] = (),
) -> Layout:
    """Divide tensors, in the order given, into files of at most `shard_size` bytes of weights.

    header_bytes: how long each file's header is at least.

    A tensor larger than that gets a file of its own. Names and index are those of transformers:
    `stem.safetensors`, or `stem-00001-of-00003.safetensors` with `stem.safetensors.index.json`.
    """
    groups: list[list[TensorShape]] = [[]]
    filled = total = 0
    for tensor in tensors:
        size = _nbytes(tensor)
        if groups[-1] and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
        total += size
    names = [f"{stem}.safetensors"]
    if len(groups) > 1:
        names = [f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors" for i in _count(groups)]
    lengths = header_bytes or [0] * len(groups)
    shards = tuple(
        Shard(name, serialize(group, metadata, length=length))
        for name, group, length in zip(names, groups, lengths, strict=True)
    )
    index = None
    if len(groups) > 1:
        weight_map = {t.name: shard.file for shard in shards for t in shard.header.tensors}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        index = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    return Layout(shards, f"{stem}.safetensors.index.json", index)


def _nbytes(tensor: TensorShape) -> int:
    _, dtype, shape = tensor
    return math.prod(shape) * BITS[dtype] // 8


def _count(groups: Sequence[object]) -> range:
    return range(1, len(groups) + 1)
