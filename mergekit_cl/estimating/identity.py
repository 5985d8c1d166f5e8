"""What decides a sidecar's values, so that equal runs are known to be equal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.checkpoint.dtypes import long_name
from mergekit_cl.digest import weights_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import OptionError
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.sidecar import Sidecar

if TYPE_CHECKING:
    from mergekit_cl.training.choose import Choice


def describe_run(
    request: FisherRequest,
    checkpoint: Checkpoint,
    choice: Choice,
    digests: dict[str, str],
    base: Checkpoint | None = None,
) -> dict[str, Any]:
    """Everything that decides the sidecar's values; equal for equal results on one machine.

    Raises OptionError where the base is the model itself.
    """
    from mergekit_cl.training.data import data_digest

    entries = [(t.name, t.dtype, t.shape, digests[t.name]) for t in checkpoint.tensors.values()]
    weights = weights_digest(entries)
    against = None if base is None else digest_of(base)
    if against == weights and request.adapter is None:
        raise OptionError(
            "the base is the model itself: nothing lies between them",
            detail=f"--base {request.base}: both have weights {weights[:16]}",
            hint="give the model that this one was fine-tuned from",
        )
    adapter = None
    if request.adapter is not None:
        with open_checkpoint(_adapter_weights(request.adapter)) as opened:
            adapter = digest_of(opened)
    return {
        "weights_digest": weights,
        "data_digest": data_digest(row.id for row in choice.rows),
        "options": {
            "adapter": adapter,
            "base": against,
            "estimator": request.estimator,
            "draws": request.draws,
            "target_se": request.target_se,
            "max_length": request.max_length,
            "seed": request.seed,
            "batch_size": request.batch_size,
            "store_dtype": long_name(request.store_dtype),
            "compute_dtype": long_name(request.compute_dtype),
            "include": list(request.selection.include),
            "exclude": list(request.selection.exclude),
        },
    }


def digest_of(checkpoint: Checkpoint) -> str:
    """The digest of all weights of a checkpoint."""
    named = checkpoint_digests(checkpoint)
    return weights_digest(
        [(t.name, t.dtype, t.shape, named[t.name]) for t in checkpoint.tensors.values()]
    )


def is_same(existing: Sidecar, described: dict[str, Any]) -> bool:
    """Whether an existing sidecar is what this run would make."""
    return all(existing.metadata.get(key) == value for key, value in described.items())


def _adapter_weights(folder: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise OptionError(
        "the folder holds no adapter",
        detail=f"--adapter {folder}: no adapter_model.safetensors",
        hint="give the directory that PEFT's save_pretrained wrote",
    )
