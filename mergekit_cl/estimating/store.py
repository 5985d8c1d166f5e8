"""A finished estimate into the files of a sidecar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisher.sidecar import encode_metadata, statistics
from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.arrays import as_bytes
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.errors import NonFiniteError
from mergekit_cl.layout import Layout, lay_out
from mergekit_cl.output.shards import ShardFiles

if TYPE_CHECKING:
    import torch


def store(
    folder: Path,
    checkpoint: Checkpoint,
    diagonal: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, Any],
    described: Mapping[str, Mapping[str, Any]],
    *,
    dtype: str,
    stem: str,
    shard_size: int,
) -> tuple[Layout, dict[str, Any]]:
    """Write the sidecar's files into `folder`; returns their layout and the whole metadata.

    diagonal: (file tensor, float32 means). described: what is known of each tensor besides its
    statistics, which are those of the values as stored. Raises NonFiniteError naming a tensor.
    """
    stored = {name: rounded(name, values, dtype) for name, values in diagonal}
    names = [name for name in checkpoint.tensors if name in stored]
    tensors = {
        name: {"kind": "diagonal", **described.get(name, {}), **statistics(stored[name])}
        for name in names
    }
    whole = {**metadata, "tensors": tensors}
    layout = lay_out(
        [(name, dtype, checkpoint.tensors[name].shape) for name in names],
        stem=stem,
        shard_size=shard_size,
        metadata=encode_metadata(whole),
    )
    files = ShardFiles(folder, layout)
    for shard in layout.shards:
        files.create(shard)
        for tensor in shard.header.tensors:
            write = files.writer(shard.file, tensor.offset)
            write(as_bytes(stored[tensor.name].reshape(-1)), 0)
        files.finish(shard.file)
    if layout.index is not None:
        (folder / layout.index_name).write_bytes(layout.index)
    return layout, whole


def rounded(name: str, values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Values as they are stored; raises NonFiniteError naming the tensor."""
    stored = values.detach().cpu().to(torch_dtype(dtype))
    # The extremes are finite where all are, and take no memory for asking.
    if stored.numel() and not all(bool(end.isfinite()) for end in stored.aminmax()):
        raise NonFiniteError(
            "a gradient is not finite, so its square says nothing",
            detail=f"{name}: {int((~stored.isfinite()).count_nonzero())} entries",
            hint="use --compute-dtype float32, or look for the row that overflows",
        )
    return stored
