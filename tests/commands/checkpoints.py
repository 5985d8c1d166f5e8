"""Small checkpoints and sidecars, made without the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

SHAPES = {
    "model.embed_tokens.weight": (12, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.1.mlp.up_proj.weight": (16, 8),
    "model.norm.weight": (8,),
}
CONFIG = {"model_type": "toy", "num_hidden_layers": 2}


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random tensors of `SHAPES`; other seeds, other numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()
    }


def checkpoint(
    path: Path,
    tensors: Mapping[str, torch.Tensor] | int = 0,
    config: Mapping[str, Any] = CONFIG,
) -> Path:
    """Save a checkpoint folder from tensors, or from a seed."""
    path.mkdir(parents=True)
    content = weights(tensors) if isinstance(tensors, int) else dict(tensors)
    save_file(content, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def sharded(path: Path, tensors: Mapping[str, torch.Tensor], files: Mapping[str, str]) -> Path:
    """Save a checkpoint folder with an index; files: {tensor: file name}."""
    path.mkdir(parents=True)
    for file in dict.fromkeys(files.values()):
        content = {name: tensors[name] for name in tensors if files[name] == file}
        save_file(content, path / file, metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG))
    write_index(path, files)
    return path


def write_index(path: Path, weight_map: Mapping[str, str]) -> None:
    """Write an index that says whatever it is told to."""
    index = {"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def raw_safetensors(path: Path, header: Mapping[str, Any] | bytes, data: bytes) -> None:
    """Write a safetensors file whose header may lie about its data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensor_digest(tensor: torch.Tensor) -> str:
    """blake3 of the blake3s of the 16 MiB pieces of a tensor's bytes."""
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    pieces = [content[at : at + 2**24] for at in range(0, len(content), 2**24)]
    return blake3(b"".join(blake3(piece).digest() for piece in pieces)).hexdigest()


def sidecar(
    model: Path,
    seed: int = 0,
    *,
    at: Path | None = None,
    values: Mapping[str, torch.Tensor] | None = None,
    leave_out: Mapping[str, str] | None = None,
    sums: bool = True,
    **said: Any,
) -> Path:
    """Save a Fisher sidecar of `model`, in its folder or `at` another place.

    values: the Fisher, else random. leave_out: {tensor: reason}. said: metadata that replaces ours.
    """
    stored = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(1000 + seed)
    leave_out = leave_out or {}
    fisher = values or {
        name: torch.rand(tensor.shape, generator=generator)
        for name, tensor in stored.items()
        if name not in leave_out and tensor.is_floating_point()
    }
    tensors: dict[str, dict[str, Any]] = {}
    for name, tensor in fisher.items():
        wide = tensor.to(torch.float64)
        tensors[name] = {"kind": "diagonal", "digest": tensor_digest(stored[name])}
        if sums:
            tensors[name] |= {
                "sum": float(wide.sum()),
                "sum_squares": float(wide.square().sum()),
                "max": float(wide.max()),
                "count": wide.numel(),
            }
    metadata = {
        "format": "clmerge.fisher/1",
        "estimator": "mc",
        "draws": 1,
        "level": "sequence",
        "unit": "per_example",
        "examples": 10,
        "tokens": 70,
        "missing": leave_out,
        "tied": {},
        "calibration": None,
        "tensors": tensors,
        **said,
    }
    path = at or model / "clmerge" / "fisher.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(fisher), path, metadata={"clmerge.fisher": json.dumps(metadata)})
    return path
