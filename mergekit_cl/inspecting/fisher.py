"""What a Fisher sidecar says of itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.inspecting.plain import mapping, number, plain

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def describe_fisher(metadata: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """All of the metadata but its statistics per tensor, summed up.

    trace: sum of all entries, None where a tensor's sum is not stored. beside: the model in whose
    side folder the sidecar lies.
    """
    tensors = mapping(metadata.get("tensors"))
    sums = [number(mapping(entry).get("sum")) for entry in tensors.values()]
    known = [value for value in sums if value is not None]
    missing = mapping(metadata.get("missing"))
    rest = {key: plain(value) for key, value in metadata.items() if key != "tensors"}
    beside = _model_beside(path)
    return {
        **rest,
        "sidecar": str(path),
        "beside": None if beside is None else str(beside),
        "weights": len(tensors),
        "trace": plain(math.fsum(known)) if len(known) == len(sums) else None,
        "missing_by_reason": dict(Counter(str(plain(reason)) for reason in missing.values())),
    }


def statistics(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored of each tensor: digest of its weight, sums, errors."""
    return {name: plain(entry) for name, entry in mapping(metadata.get("tensors")).items()}


def _model_beside(sidecar: str | Path) -> Path | None:
    if isinstance(sidecar, str):
        return None  # beyond this disk
    folder = sidecar.absolute().parent
    if folder.name == "clmerge":
        return folder.parent
    if folder.suffix != ".clmerge":
        return None
    places = (folder.with_suffix(suffix) for suffix in WEIGHTS)
    return next((place for place in places if place.is_file()), None)
