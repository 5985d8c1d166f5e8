"""How an output of ours was made, by its manifest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mergekit_cl.inspecting.plain import mapping, plain
from mergekit_cl.inspecting.tensors import Described
from mergekit_cl.recorded import Recorded


def describe_made(recorded: Recorded) -> dict[str, Any]:
    """All of a manifest but its tensors, which are counted by what was done to them."""
    content = recorded.content
    actions = Counter(str(mapping(t).get("action")) for t in content["tensors"].values())
    rest = {key: plain(value) for key, value in content.items() if key != "tensors"}
    return {**rest, "manifest": str(recorded.path), "actions": dict(actions)}


def tensors_recorded(recorded: Recorded) -> list[Described]:
    """The tensors a manifest lists; it does not say which file holds one."""
    only = next(iter(recorded.files)) if len(recorded.files) == 1 else ""
    return [(name, t.dtype, t.shape, only) for name, t in recorded.tensors.items()]


def files_recorded(recorded: Recorded) -> list[dict[str, Any]]:
    """The files a manifest lists."""
    return [
        {"name": name, "format": Path(name).suffix.lstrip("."), "bytes": nbytes}
        for name, (nbytes, _) in recorded.files.items()
    ]
