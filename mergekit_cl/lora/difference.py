"""Which tensors of a tuned model differ from its base, and what an adapter can hold of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.checkpoint.arrays import as_tensor
from mergekit_cl.finite import count_nonfinite, nonfinite_input

if TYPE_CHECKING:
    import torch

Role = Literal["linear", "embedding", "convolution", "experts", "other"]

EMBEDDINGS = ("embed", "wte", "wpe", "shared")
FLOAT64_ELEMENTS = 2**24
"""Larger differences are taken and decomposed in float32: half the memory and time."""

STEP = 2**20


class Candidate(NamedTuple):
    """A tensor of both models. module: its path without the leaf."""

    name: str
    info: TensorInfo
    role: Role

    @property
    def module(self) -> str:
        """Path of the module that owns it."""
        return self.name.rpartition(".")[0]


def candidates(base: Checkpoint) -> list[Candidate]:
    """Every float tensor of the base with what it is, by name and shape."""
    return [Candidate(n, info, _role(info)) for n, info in base.tensors.items() if info.is_float]


def difference_of(tuned: Checkpoint, base: Checkpoint, name: str) -> torch.Tensor:
    """tuned - base in its shape: float64, or float32 where it is large."""
    import torch

    info = base.tensors[name]
    wide = torch.float64 if wide_bytes(info) == 8 else torch.float32
    found = torch.empty(info.numel, dtype=wide)
    for start in range(0, info.numel, STEP):
        stop = min(start + STEP, info.numel)
        out, parts = found[start:stop], []
        for checkpoint in (tuned, base):
            tensor = checkpoint.tensors[name]
            stored = as_tensor(checkpoint.block(tensor, start, stop), tensor.dtype)
            if bad := count_nonfinite(stored):
                raise nonfinite_input(f"{checkpoint.path}: {name} ({bad} in one block)")
            parts.append(stored.double())
            checkpoint.release(name, start, stop)
        out.copy_(parts[0] - parts[1])
    return found.reshape(info.shape)


def wide_bytes(info: TensorInfo) -> int:
    """Bytes per element in which a difference is decomposed."""
    return 8 if info.numel <= FLOAT64_ELEMENTS else 4


def _role(info: TensorInfo) -> Role:
    module, _, leaf = info.name.rpartition(".")
    own = module.rpartition(".")[2]
    if not module or len(info.shape) < 2 or not info.numel:
        return "other"
    if leaf != "weight":
        return "experts" if len(info.shape) == 3 and own == "experts" else "other"
    if len(info.shape) > 2:
        return "convolution"
    return "embedding" if any(part in own for part in EMBEDDINGS) else "linear"
