"""Small checkpoints and sidecars written as other programs write them, and merges of them.

Files are written by safetensors or torch, never by the code under test, so that reading and
merging them proves something. Paths come back, so that calls nest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import fisher.sidecar
from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.merging import MergeOutcome, OutputOptions, run_merge
from mergekit_cl.methods.fisher import fisher_method
from mergekit_cl.methods.linear import linear_method
from mergekit_cl.methods.method import Method
from mergekit_cl.sidecar import sidecar_of

Tensors = dict[str, torch.Tensor]
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "torch_dtype": "bfloat16"}


def model_tensors(seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """A few tensors of model-like names: matrices, a vector, a scalar and an empty one."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (37, 16),
        "model.layers.0.mlp.up_proj.weight": (24, 16),
        "model.layers.0.norm.weight": (16,),
        "model.layers.1.mlp.up_proj.weight": (24, 16),
        "model.layers.1.scale": (),
        "model.layers.1.unused": (0, 4),
        "lm_head.weight": (37, 16),
    }
    return {
        name: (torch.randn(shape, generator=generator) * 0.1).to(dtype)
        for name, shape in shapes.items()
    }


def write_model(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None
) -> Path:
    """A checkpoint folder with one `model.safetensors`, and `config.json` if one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def write_sharded(folder: Path, groups: Sequence[Mapping[str, torch.Tensor]]) -> Path:
    """A checkpoint folder with one safetensors file per group, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for i, group in enumerate(groups, start=1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        save_file(dict(group), folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(group, file))
    write_index(folder / "model.safetensors.index.json", weight_map)
    return folder


def write_index(path: Path, weight_map: object) -> Path:
    """An index file with any weight map, honest or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return path


def write_pickle(path: Path, content: object, *, legacy: bool = False) -> Path:
    """A torch file in the format since 1.6 or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def raw_safetensors(header: object, data: bytes = b"", *, pad: int = 0) -> bytes:
    """A safetensors file with any header, true or not: an object, or the text of one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * pad
    return len(text).to_bytes(8, "little") + text + data


def write_sidecar(
    model: Path, diagonal: Mapping[str, torch.Tensor], *, digests: bool = True, **metadata: Any
) -> Path:
    """A Fisher sidecar in the side folder of a model, with digests of its present weights."""
    with open_checkpoint(model) as opened:
        folder = opened.side_folder
        known = checkpoint_digests(opened) if digests else {}
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "estimator": "mc",
        "draws": 1,
        "unit": "per_example",
        "level": "sequence",
        "examples": 8,
        "tokens": 160,
        "missing": {},
        "calibration": None,
        "tensors": {name: {"digest": known[name]} for name in diagonal if name in known},
        **metadata,
    }
    fisher.sidecar.save(folder / "fisher.safetensors", diagonal, described)
    return folder / "fisher.safetensors"


def fisher_like(tensors: Mapping[str, torch.Tensor], seed: int) -> Tensors:
    """Non-negative float32 values that span many orders of magnitude, as real Fishers do."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand(tensor.shape, generator=generator) * 30 - 40).exp()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }


def silent(title: str, total: int) -> Callable[[int], None]:
    """Progress that shows nothing."""
    return lambda done: None


def linear(
    inputs: Sequence[Path],
    *,
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    base: Path | None = None,
    reported: bool = False,
) -> Method:
    """The linear method over checkpoint paths; `reported` takes their sidecars along."""
    opened = [open_checkpoint(path) for path in inputs]
    return linear_method(
        opened,
        weights=weights,
        normalize=normalize,
        base=None if base is None else open_checkpoint(base),
        sidecars=[sidecar_of(one, None) if reported else None for one in opened],
    )


def by_fisher(inputs: Sequence[Path], *, base: Path | None = None, **options: Any) -> Method:
    """The Fisher method over checkpoint paths with sidecars in their side folders."""
    return fisher_of([open_checkpoint(path) for path in inputs], base=base, **options)


def fisher_of(opened: Sequence[Checkpoint], *, base: Path | None = None, **options: Any) -> Method:
    """The Fisher method over opened checkpoints."""
    from mergekit_cl.plan import Selection

    settings: dict[str, Any] = {
        "weights": None,
        "normalize": "trace",
        "floor": 1e-6,
        "fallback": "linear",
        "on_missing": "error",
        "allow_mixed": False,
        "selection": Selection(),
        **options,
    }
    return fisher_method(
        opened,
        [sidecar_of(one, None) for one in opened],
        base=None if base is None else open_checkpoint(base),
        **settings,
    )


def merge(method: Method, target: Path, progress: Any = silent, **options: Any) -> MergeOutcome:
    """Run a method into `target`."""
    return run_merge(method, OutputOptions(target=target, **options), progress)


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weight_bytes(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor, read by the safetensors library alone."""
    from safetensors import deserialize

    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for file in files
        for name, entry in deserialize(file.read_bytes())
    }


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit: -0.0 is not 0.0, a NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(
        one.reshape(-1).contiguous().view(torch.uint8),
        other.reshape(-1).contiguous().view(torch.uint8),
    )
