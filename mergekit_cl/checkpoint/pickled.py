"""Weights in torch's own format (`.bin`, `.pt`, `.pth`), by the weights-only loader alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint.arrays import as_array
from mergekit_cl.checkpoint.dtypes import safetensors_dtype
from mergekit_cl.checkpoint.header import TensorInfo
from mergekit_cl.checkpoint.unpickle import check_records, damaged, load
from mergekit_cl.errors import FormatError, InputError

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array

# Where training scripts put the weights inside a checkpoint, most specific first.
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")
DEEPEST = 8  # containers in containers; one that holds itself has no end


class PickledFile:
    """A torch file opened lazily: storages stay in the file until they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors, self.aliases = _describe(load(path), path)
        self._copied: tuple[str, torch.Tensor] | None = None

    def infos(self) -> tuple[TensorInfo, ...]:
        """One entry per distinct tensor, in file order; offsets are unknown and 0."""
        return tuple(
            TensorInfo(name, safetensors_dtype(tensor.dtype), tuple(tensor.shape), 0)
            for name, tensor in self.tensors.items()
        )

    def read(self, tensor: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop`, flat; of a copy where the tensor is not contiguous."""
        part = self._flat(tensor.name)[start:stop]
        # A single element counts as contiguous whatever its stride, which no view of bytes takes.
        return part if part.stride(0) == 1 else part.as_strided(part.shape, (1,))

    def block(self, tensor: TensorInfo, start: int, stop: int) -> Array:
        """The same as an array: still of torch's mapping."""
        return as_array(self.read(tensor, start, stop))

    def expect(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing to do: torch owns the mapping."""

    def _flat(self, name: str) -> torch.Tensor:
        stored = self.tensors[name]
        if stored.is_contiguous():
            return stored.reshape(-1)
        # One copy is kept: blocks of a tensor are read one after the other.
        copied = self._copied
        if copied is None or copied[0] != name:
            copied = self._copied = (name, stored.contiguous().reshape(-1))
        return copied[1]

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing to give back: torch owns the mapping."""

    def close(self) -> None:
        """Forget the tensors."""
        self.tensors = {}
        self._copied = None


def is_pickle(path: Path) -> bool:
    """Whether the first bytes are those of a torch file, zipped (since 1.6) or legacy.

    A safetensors file may begin with any byte, the pickle mark 0x80 among them: it is known by the
    brace after its header's length.
    """
    with path.open("rb") as stream:
        start = stream.read(9)
    if start[8:] == b"{":
        return False
    return start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"


def find_state_dict(value: Any, path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in a loaded checkpoint: the value itself or under a customary key."""
    import torch

    seen: list[str] = []
    while isinstance(value, Mapping) and len(seen) < DEEPEST:
        if value and all(isinstance(item, torch.Tensor) for item in value.values()):
            return value
        key = next((k for k in CONTAINERS if isinstance(value.get(k), Mapping)), None)
        if key is None:
            loose = [str(k) for k, item in value.items() if not isinstance(item, torch.Tensor)]
            raise InputError(
                "no state dict is found in the file",
                detail=f"{path}: below {'.'.join(seen) or 'the top'}: {', '.join(loose[:6])}",
                hint="save a dict that maps names to tensors and nothing else",
            )
        seen.append(key)
        value = value[key]
    raise InputError(
        "the file holds no mapping of names to tensors",
        detail=f"{path}: {type(value).__name__}",
        hint="save a state dict: torch.save(model.state_dict(), ...)",
    )


def _describe(value: Any, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Distinct tensors by name, and {other name: canonical name} for those that share memory."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    size = path.stat().st_size
    for name, tensor in find_state_dict(value, path).items():
        if not isinstance(name, str):
            raise FormatError("a tensor's name is not text", detail=f"{path}: {name!r:.80}")
        _check_plain(name, tensor, path)
        if tensor.numel() * tensor.element_size() > size:
            # A stride of 0 repeats one element without end; to read it would be to allocate it.
            raise damaged(path, f"{name} has {list(tensor.shape)} elements, more than the file")
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.detach()
    check_records(path, tensors.values())
    return tensors, aliases


def _check_plain(name: str, tensor: torch.Tensor, path: Path) -> None:
    import torch

    if tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise InputError(
            "quantised and sparse tensors, and those without values, cannot be read",
            detail=f"{path}: {name} is {tensor.dtype}, {tensor.layout}, on {tensor.device}",
            hint="save the model dequantised and dense",
        )
    try:
        safetensors_dtype(tensor.dtype)
    except KeyError as error:
        raise InputError(
            "a tensor's dtype has no place in a safetensors file",
            detail=f"{path}: {name} is {tensor.dtype}",
        ) from error
