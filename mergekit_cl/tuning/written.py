"""What was written, as a manifest lists it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.manifest import describe_input

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def describe_written(out: Path, target: Path, before: Mapping[str, str]) -> dict[str, Any]:
    """`outputs` and `tensors` of a model or adapter in the folder `out`, on its way to `target`.

    before: digests of the base's tensors; one that is as it was there counts as copied.
    """
    adapter = out / ADAPTER_WEIGHTS
    with open_checkpoint(adapter if adapter.is_file() else out) as written:
        digests = checkpoint_digests(written)
        return {
            "outputs": [{**describe_input(written, "output", digests), "path": str(target)}],
            "tensors": {
                name: {
                    "digest": digests[name],
                    "dtype": info.dtype,
                    "shape": list(info.shape),
                    "action": "copied" if before.get(name) == digests[name] else "merged",
                }
                for name, info in written.tensors.items()
            },
        }
