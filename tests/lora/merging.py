"""lora-merge through the library, as the command calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.lora.adapter import open_adapter
from mergekit_cl.merging import MergeOutcome, OutputOptions, run_merge
from mergekit_cl.methods.lora import lora_method


def merge(
    base: Path,
    adapters: Sequence[Path],
    target: Path,
    scales: Sequence[float] | None = None,
    **options: Any,
) -> MergeOutcome:
    """Merge adapters into a base; options are those of OutputOptions."""
    method = lora_method(
        open_checkpoint(base),
        [open_adapter(path) for path in adapters],
        scales=scales,
        undo="base",
        allow_other_base=False,
        carry=bool(options.get("carry")),
    )
    return run_merge(method, OutputOptions(target, **options), silent)


def silent(label: str, total: int) -> Callable[[int], None]:
    """No progress."""
    return lambda done: None
