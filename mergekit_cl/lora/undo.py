"""What a merge records so that it can be undone: which tensors changed, and what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.companions import companions
from mergekit_cl.digest import bytes_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import FormatError
from mergekit_cl.plan import Plan
from mergekit_cl.recorded import RecordedTensor
from mergekit_cl.results import TensorResult

Undo = Literal["base", "xor", "none"]


@dataclass(frozen=True)
class Undoing:
    """The record read back.

    path: where the base was. tensors: what changed or is gone, as it was in the base. added: what
    the base does not have. files: {companion that changed or is gone: its digest in the base}.
    added_files: companions that the base does not have.
    """

    kind: Undo
    path: str
    tensors: Mapping[str, RecordedTensor]
    added: tuple[str, ...]
    files: Mapping[str, str]
    added_files: tuple[str, ...]


def undo_record(
    kind: Undo, base: Checkpoint, plan: Plan, results: Mapping[str, TensorResult], out: Path
) -> dict[str, Any]:
    """The record of a merge in `out`, by digests: a tensor that kept its bits is not in it."""
    digests = _base_digests(base, plan, results)
    changed = {
        name: {"digest": digests[name], "dtype": info.dtype, "shape": list(info.shape)}
        for name, info in base.tensors.items()
        if (step := plan.steps.get(name)) is None
        or (step.dtype, step.shape) != (info.dtype, info.shape)
        or results[name].digest != digests[name]
    }
    theirs = {path.name: path for path in companions(base.root)} if base.folder else {}
    ours = {path.name: path for path in companions(out)}
    files = {
        name: bytes_digest(content)
        for name, path in theirs.items()
        if (content := path.read_bytes()) is not None
        and (name not in ours or ours[name].read_bytes() != content)
    }
    return {
        "kind": kind,
        "path": str(base.here.absolute() if base.here else base.path),
        "tensors": changed,
        "added": sorted(plan.steps.keys() - base.tensors.keys()),
        "files": files,
        "added_files": sorted(ours.keys() - theirs.keys()),
    }


def read_undoing(found: Any, where: str) -> Undoing:
    """The record in a manifest; raises FormatError where it is not one."""
    try:
        files = [found["path"], *found["added"], *found["added_files"], *found["files"].values()]
        names = [*found["files"], *found["added_files"]]
        tensors = {
            name: RecordedTensor(one["digest"], one["dtype"], tuple(one["shape"]))
            for name, one in found["tensors"].items()
        }
        outside = [n for n in names if n != Path(n).name or n in ("", ".", "..") or "\0" in n]
        if outside or not all(isinstance(text, str) for text in files):
            raise ValueError(f"{outside or files}")
        if found["kind"] not in ("base", "xor"):
            raise ValueError(found["kind"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            "the manifest does not say how to undo the merge",
            detail=f"{where}: undo: {error!s:.80}",
            hint="bring back the manifest that the merge wrote",
        ) from error
    return Undoing(
        found["kind"],
        found["path"],
        tensors,
        tuple(found["added"]),
        dict(found["files"]),
        tuple(found["added_files"]),
    )


def _base_digests(
    base: Checkpoint, plan: Plan, results: Mapping[str, TensorResult]
) -> dict[str, str]:
    """Digests of the base's tensors; those that were replaced unread are read now."""
    found = {
        operand.info.name: digest
        for name, step in plan.steps.items()
        for operand, digest in zip(step.operands, results[name].operand_digests, strict=True)
        if operand.checkpoint is base
    }
    unread: Sequence[str] = [name for name in base.tensors if name not in found]
    return {**found, **(checkpoint_digests(base, names=unread) if unread else {})}
