"""An unmerge of tensors that have changed since: the update subtracted, what came after it kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.digest import weights_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import MismatchError
from mergekit_cl.lora.adapter import Adapter, open_adapter
from mergekit_cl.lora.applying import Applying, kernel_bytes
from mergekit_cl.lora.edits import Bias, Edit, LowRank
from mergekit_cl.lora.factors import Kept
from mergekit_cl.lora.keymap import KeyMap
from mergekit_cl.lora.planning import by_tensor
from mergekit_cl.lora.resolve import edits_of
from mergekit_cl.lora.tied import tied_head, virtual
from mergekit_cl.plan import Operand, Step

if TYPE_CHECKING:
    import torch

    from mergekit_cl.lora.unmerging import Made

STEP = 2**20


def merged_adapters(content: Mapping[str, Any]) -> list[tuple[Adapter, float]]:
    """The adapters that a manifest names, with their scales.

    Raises InputError where one is gone, MismatchError where one is another now.
    """
    told = [one for one in content["inputs"] if one.get("role") == "adapter"]
    options = content["options"]
    found = []
    for source, scale, kept in zip(told, options["scales"], options["adapters"], strict=True):
        adapter = open_adapter(Path(source["path"]).parent)
        digests = checkpoint_digests(adapter.checkpoint)
        said = _weights_digest(adapter.checkpoint, digests)
        if (adapter.digest, said) != (kept["config_digest"], source["weights_digest"]):
            raise MismatchError(
                "an adapter is no longer what was merged, so it cannot be subtracted",
                detail=str(adapter.path),
                hint="bring it back as it was",
            )
        found.append((adapter, float(scale)))
    return found


def subtracting(
    made: Made, changed: Collection[str], adapters: Sequence[tuple[Adapter, float]]
) -> dict[str, Step]:
    """Steps that subtract the adapters from the changed tensors, in float64 with one rounding.

    Raises MismatchError naming a tensor that was changed by more than a sum.
    """
    touched = [name for name in changed if name in made.undoing.tensors]
    keys = KeyMap(made.merged, virtual(made.merged, tied_head(made.merged)))
    edits: list[tuple[Adapter, Sequence[Edit]]] = [
        (adapter, edits_of(adapter, made.merged, keys, scale=-scale))
        for adapter, scale in (adapters if touched else ())
    ]
    edited = by_tensor(edits)
    kept = Kept()
    steps = {}
    for name in touched:
        own, info = edited.get(name), made.merged.tensors[name]
        then = made.undoing.tensors[name]
        sums = own is not None and own.replaced is None
        if (
            not sums
            or own is None
            or then.shape != info.shape
            or not all(isinstance(one.edit, (LowRank, Bias)) for one in own.changes)
        ):
            raise MismatchError(
                "a tensor that has changed since was merged by more than a sum",
                detail=f"{made.merged.path}: {name}",
                hint="take the merge as it was, or its base",
            )

        def read(start: int, stop: int, name: str = name) -> torch.Tensor:
            return made.merged.read(name, start, stop).double()

        applying = Applying(info.shape, own.changes, read, kept, allow_nonfinite=True)
        steps[name] = Step(
            name,
            then.dtype,
            info.shape,
            "merged",
            (Operand(made.merged, info),),
            applying.kernel_of(0),
            (0,),
            (None,),
            compute="F64",
            kernel_of=applying.kernel_of,
            kernel_bytes=kernel_bytes(info.shape, own.changes),
        )
    return steps


def drift(restored: Checkpoint, base: Checkpoint, name: str) -> float | None:
    """|restored - base| / |base| of a tensor; None where the base's values are not at hand."""
    info = base.tensors.get(name)
    if info is None or info.shape != restored.tensors[name].shape:
        return None
    apart = whole = 0.0
    for start in range(0, info.numel, STEP):
        stop = min(start + STEP, info.numel)
        then = base.read(name, start, stop).double()
        apart += float((restored.read(name, start, stop).double() - then).square().sum())
        whole += float(then.square().sum())
    found = math.sqrt(apart / whole) if whole else math.inf
    return found if math.isfinite(found) else None


def _weights_digest(checkpoint: Checkpoint, digests: Mapping[str, str]) -> str:
    return weights_digest(
        (t.name, t.dtype, t.shape, digests[t.name]) for t in checkpoint.tensors.values()
    )
