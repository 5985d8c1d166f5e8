"""What a run gives away: a model in names and dtypes of the file it came from, or an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.arrays import as_bytes
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.companions import copy_companions
from mergekit_cl.errors import NonFiniteError
from mergekit_cl.layout import lay_out
from mergekit_cl.manifest import write_json
from mergekit_cl.merge.rounding import round_into
from mergekit_cl.output.shards import ShardFiles
from mergekit_cl.training.names import file_name as spelled
from mergekit_cl.training.quiet import quiet_peft
from mergekit_cl.tuning.model import ADAPTER, Tuned
from mergekit_cl.tuning.state import whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SHARD_SIZE = 5 * 10**9


def stored_tensors(tuned: Tuned, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """{file tensor: values} of a whole fine-tune, rounded once to the file's dtypes.

    What is no parameter or buffer of the model is as it was. Raises NonFiniteError, naming the
    tensor, where rounding overflows. A collective, where weights are sharded.
    """
    parameters = {name: whole(p) for name, p in tuned.module.named_parameters()}
    exact = dict(tuned.built.by_file(parameters))
    prefix = getattr(tuned.built.model, "base_model_prefix", "")
    buffers = {spelled(name, prefix, checkpoint): whole(b) for name, b in tuned.named_buffers()}
    found: dict[str, Tensor] = {}
    for name, info in checkpoint.tensors.items():
        values = exact.get(tuned.built.tied.get(name, name), buffers.get(name))
        if values is None or tuple(values.shape) != info.shape:
            found[name] = checkpoint.read(name).view(info.shape).clone()
            continue
        found[name] = _rounded(name, values, info.dtype)
    return found


def write_model(
    folder: Path,
    tensors: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    *,
    shard_size: int = SHARD_SIZE,
) -> None:
    """Write weights, index and the files that make them a model into an existing folder."""
    layout = lay_out(
        [(info.name, info.dtype, info.shape) for info in checkpoint.tensors.values()],
        stem="model",
        shard_size=shard_size,
        metadata={"format": "pt"},
    )
    files = ShardFiles(folder, layout)
    for shard in layout.shards:
        files.create(shard)
        for tensor in shard.header.tensors:
            write = files.writer(shard.file, tensor.offset)
            write(as_bytes(tensors[tensor.name].reshape(-1)), 0)
        files.finish(shard.file)
    if layout.index is not None:
        (folder / layout.index_name).write_bytes(layout.index)
    copy_companions(checkpoint.root, folder, None)


def write_adapter(folder: Path, tuned: Tuned, checkpoint: Checkpoint) -> None:
    """Save the adapter in PEFT's format: what `clmerge lora-merge` and peft read."""
    tuned.module.peft_config[ADAPTER].base_model_name_or_path = str(checkpoint.path)
    with quiet_peft():
        tuned.module.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a card with nothing filled in
    path = folder / "adapter_config.json"
    said = json.loads(path.read_bytes())
    for key in ("target_modules", "modules_to_save"):
        if isinstance(said.get(key), list):  # sets, whose order differs between processes
            said[key] = sorted(said[key])
    write_json(path, said)


def _rounded(name: str, values: Tensor, dtype: str) -> Tensor:
    wanted = torch_dtype(dtype)
    if values.dtype == wanted:
        stored = values
    else:
        stored = torch.empty(values.shape, dtype=wanted)
        round_into(stored.view(-1), values.reshape(-1))
    if stored.is_floating_point() and not bool(stored.isfinite().all()):
        raise NonFiniteError(
            "a trained weight is too large for the dtype of its file",
            detail=f"{name}: {dtype}",
            hint="train a float32 copy of the model, or with a smaller learning rate",
        )
    return stored
