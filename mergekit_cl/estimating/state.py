"""An unfinished estimate on the disk, replaced in one step at batch boundaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fisher.accumulator import Accumulator
from mergekit_cl.output.publish import sync


def save_state(path: Path, accumulator: Accumulator, batches: int) -> None:
    """Write the accumulator after `batches` batches; the previous state stays until it is whole."""
    from safetensors.torch import save_file

    tensors, numbers = accumulator.state()
    fresh = path.with_suffix(".new")
    save_file(tensors, str(fresh), metadata={"numbers": json.dumps([batches, numbers])})
    sync(fresh)
    fresh.replace(path)


def load_state(path: Path, accumulator: Accumulator) -> int:
    """Bring the accumulator to the saved state; returns the batches it holds, 0 without one."""
    from safetensors import safe_open

    if not path.is_file():
        return 0
    with safe_open(str(path), framework="pt") as stored:
        batches, numbers = json.loads(stored.metadata()["numbers"])
        tensors: dict[str, Any] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    accumulator.restore(tensors, numbers)
    return int(batches)
