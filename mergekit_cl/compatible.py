"""Whether inputs have the same tensors, of kinds that can be merged; from headers."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.checkpoint.dtypes import INTEGERS, MERGEABLE
from mergekit_cl.errors import InputError, MismatchError
from mergekit_cl.ties import Ties
from mergekit_cl.vocabulary import Resized, Vocab


def check_same_tensors(
    checkpoints: Sequence[Checkpoint],
    resized: Resized | None = None,
    vocab: Vocab = "error",
    ties: Ties | None = None,
) -> None:
    """Raise MismatchError listing every tensor that some input lacks or has in another shape.

    resized: vocabulary tensors that may differ in their rows, unless `vocab` is "error". ties:
    names that stand for other tensors.
    """
    first = checkpoints[0]
    ties = ties or Ties()
    rows = {} if resized is None else resized.rows
    others = False
    found: list[str] = []
    for other in checkpoints[1:]:
        for name, tensor in first.tensors.items():
            if name in ties.canonical:
                continue
            if (said := _difference(first, other, tensor, ties.held(other, name))) is None:
                continue
            if name not in rows:
                others = True
            elif vocab != "error":
                continue
            found.append(said)
        extra = [n for n in other.tensors if n not in first.tensors and n not in ties.canonical]
        found.extend(f"{name}: not in {first.path}" for name in extra)
        others = others or bool(extra)
    if found:
        raise MismatchError(
            f"the inputs differ in {len(found)} tensors",
            detail="\n  ".join(found),
            hint="merge checkpoints of one architecture"
            if others
            else "--vocab common merges the rows that all have, --vocab base keeps the first's too",
        )


def _difference(
    first: Checkpoint, other: Checkpoint, tensor: TensorInfo, twin: TensorInfo | None
) -> str | None:
    """How another input's tensor differs from the first's, or None."""
    name = tensor.name
    if twin is not None and (twin.shape, twin.dtype) == (tensor.shape, tensor.dtype):
        return None
    if twin is None:
        return f"{name}: not in {other.path}"
    if twin.shape != tensor.shape:
        return f"{name}: {list(tensor.shape)} in {first.path}, {list(twin.shape)} in {other.path}"
    if twin.is_float != tensor.is_float or (not tensor.is_float and twin.dtype != tensor.dtype):
        return f"{name}: {tensor.dtype} in {first.path}, {twin.dtype} in {other.path}"
    return None


def check_mergeable(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise InputError for fp8, packed or quantised weights, naming the first."""
    known = MERGEABLE | INTEGERS
    for checkpoint in checkpoints:
        if not checkpoint.tensors:
            raise InputError("the checkpoint holds no tensors", detail=str(checkpoint.path))
        quantisation = (checkpoint.config or {}).get("quantization_config")
        if quantisation is not None:
            method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
            raise _quantised(f"{checkpoint.path}: config.json says {method or 'quantised'}")
        for tensor in checkpoint.tensors.values():
            if tensor.dtype not in known:
                raise _quantised(f"{checkpoint.path}: {tensor.name} is {tensor.dtype}")


def _quantised(detail: str) -> InputError:
    return InputError(
        "quantised weights cannot be merged: their numbers mean nothing without their scales",
        detail=detail,
        hint="merge the unquantised model and quantise the result",
    )
