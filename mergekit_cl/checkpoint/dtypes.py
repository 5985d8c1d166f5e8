"""The element types of checkpoint files, spelled as safetensors spells them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# In the order in which the safetensors library ranks them when it lays out a file.
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
MERGEABLE = frozenset({"F16", "BF16", "F32", "F64"})
INTEGERS = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})

_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
READABLE = frozenset(_TORCH)
"""What torch has a type for; the others are described by their header and never read."""

LONG_NAMES = {_TORCH[short]: short for short in ("F16", "BF16", "F32", "F64")}


def itemsize(dtype: str) -> int:
    """Bytes per element; 0 for the sub-byte types, which are stored packed."""
    return BITS[dtype] // 8


def long_name(dtype: str) -> str:
    """The name users type: 'bfloat16' for 'BF16'."""
    return _TORCH.get(dtype, dtype)


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch type of a safetensors type.

    Raises KeyError for types that torch cannot compute with (4 and 6 bits).
    """
    import torch

    found: torch.dtype = getattr(torch, _TORCH[dtype])
    return found


def safetensors_dtype(dtype: torch.dtype) -> str:
    """The safetensors spelling of a torch type.

    Raises KeyError for types safetensors has no name for (quantised ones).
    """
    return {name: short for short, name in _TORCH.items()}[str(dtype).removeprefix("torch.")]


def promote(dtypes: set[str]) -> str:
    """The smallest floating type that holds every given one exactly: bf16 with fp16 gives F32."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "F64" if "F64" in dtypes else "F32"
