"""lora-merge through the library, as the command calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.digest import weights_digest
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.lora.adapter import open_adapter
from mergekit_cl.lora.undo import Undo
from mergekit_cl.merging import MergeOutcome, OutputOptions, run_merge
from mergekit_cl.methods.lora import lora_method
from mergekit_cl.methods.lora_unmerge import unmerge_method


def merge(
    base: Path,
    adapters: Sequence[Path],
    target: Path,
    scales: Sequence[float] | None = None,
    undo: Undo = "base",
    **options: Any,
) -> MergeOutcome:
    """Merge adapters into a base; options are those of OutputOptions."""
    method = lora_method(
        open_checkpoint(base),
        [open_adapter(path) for path in adapters],
        scales=scales,
        undo=undo,
        allow_other_base=False,
        carry=bool(options.get("carry")),
    )
    return run_merge(method, OutputOptions(target, **options), silent)


def unmerge(merged: Path, target: Path) -> MergeOutcome:
    """Take a merge back as its record says."""
    method = unmerge_method(
        open_checkpoint(merged), base=None, approximate=False, headers_only=False
    )
    return run_merge(method, OutputOptions(target, report=False, allow_nonfinite=True), silent)


def digest(path: Path) -> str:
    """The weights digest of a checkpoint, of its files as they are."""
    with open_checkpoint(path) as opened:
        found = checkpoint_digests(opened)
        return weights_digest(
            (t.name, t.dtype, t.shape, found[t.name]) for t in opened.tensors.values()
        )


def same(one: Path, other: Path) -> bool:
    """Whether two models have the same weights, config and tokenizer, to the bit."""
    names = [
        {p.name for p in path.iterdir() if p.suffix in (".json", ".md")} for path in (one, other)
    ]
    texts = names[0] == names[1] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names[0]
    )
    return texts and digest(one) == digest(other)


def silent(label: str, total: int) -> Callable[[int], None]:
    """No progress."""
    return lambda done: None
