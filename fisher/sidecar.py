"""The Fisher sidecar: one safetensors file of a checkpoint's shapes, with what made it.

The format is docs/sidecar.md. `save` and `load` are the small in-memory form; the command line
streams the same format shard by shard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

METADATA_KEY = "clmerge.fisher"
FORMAT = "clmerge.fisher/1"
REQUIRED = ("estimator", "unit", "level", "examples", "tensors")
STATISTICS = ("sum", "sum_squares", "max", "count")


class SidecarError(ValueError):
    """The file is no Fisher sidecar, or not one that this version reads."""


def statistics(stored: torch.Tensor) -> dict[str, float | int]:
    """Sums of one tensor's STORED values in float64: what a merge needs to scale it.

    Gives `sum`, `sum_squares`, `max`, `count` and `zero_share` (share of exact zeros).
    """
    import torch

    total = squares = 0.0
    zeros = 0
    largest = 0.0
    flat = stored.reshape(-1)
    for start in range(0, flat.numel(), 2**20):
        piece = flat[start : start + 2**20]
        wide = piece.to(torch.float64)
        total += float(wide.sum())
        squares += float(torch.dot(wide, wide))
        zeros += int((wide == 0).count_nonzero())
        largest = max(largest, float(wide.max()))
    count = flat.numel()
    return {
        "sum": total,
        "sum_squares": squares,
        "max": largest,
        "count": count,
        "zero_share": zeros / count if count else 0.0,
    }


def encode_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The safetensors metadata that carries a sidecar's description."""
    text = json.dumps({"format": FORMAT, **metadata}, sort_keys=True, allow_nan=False)
    return {METADATA_KEY: text, "format": "pt"}


def decode_metadata(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """The description in a safetensors file's metadata.

    where: the file, for messages. Raises SidecarError where it is missing or incomplete.
    """
    if METADATA_KEY not in metadata:
        raise SidecarError(f"{where} has no {METADATA_KEY} metadata: it is no Fisher sidecar")
    try:
        found = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise SidecarError(f"{where}: its {METADATA_KEY} metadata is not JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        seen = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise SidecarError(f"{where} has format {seen!r}; this version reads {FORMAT!r}")
    missing = [key for key in REQUIRED if key not in found]
    if missing:
        raise SidecarError(f"{where}: its metadata lacks {', '.join(missing)}")
    wrong = _wrong_values(found)
    if wrong:
        raise SidecarError(f"{where}: its metadata has impossible values for {', '.join(wrong)}")
    return found


def _wrong_values(said: Mapping[str, Any]) -> list[str]:
    """Keys whose values cannot be what docs/sidecar.md says they are."""
    wrong = [key for key in ("estimator", "unit", "level") if not isinstance(said[key], str)]
    wrong += [key for key in ("examples", "tokens") if not _is_count(said.get(key, 0))]
    missing = said.get("missing", {})
    if not isinstance(missing, dict) or not all(isinstance(v, str) for v in missing.values()):
        wrong.append("missing")
    calibration = said.get("calibration")
    if calibration is not None and not _is_amount(calibration):
        wrong.append("calibration")
    tensors = said["tensors"]
    if not isinstance(tensors, dict):
        return [*wrong, "tensors"]
    wrong += [f"tensors.{name}" for name, entry in tensors.items() if not _is_description(entry)]
    return wrong[:5]


def _is_description(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("digest"), (str, type(None))):
        return False
    amounts = all(_is_amount(entry[key]) for key in STATISTICS if key in entry)
    return amounts and ("count" not in entry or _is_count(entry["count"]))


def _is_amount(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < math.inf  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def save(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a sidecar from memory.

    tensors: non-negative means per example, named and shaped as the weights. metadata: at least
    `estimator`, `unit`, `level` and `examples`; statistics per tensor are added.
    """
    from safetensors.torch import save_file

    known = metadata.get("tensors", {})
    described = {
        name: {"kind": "diagonal", **known.get(name, {}), **statistics(tensor)}
        for name, tensor in tensors.items()
    }
    whole = {**metadata, "tensors": described}
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(content, str(path), metadata=encode_metadata(whole))


def load(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the description of an unsharded sidecar; raises SidecarError."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as stored:
        metadata = decode_metadata(stored.metadata() or {}, str(path))
        return {name: stored.get_tensor(name) for name in stored.keys()}, metadata  # noqa: SIM118
