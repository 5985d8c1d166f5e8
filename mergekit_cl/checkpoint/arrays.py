"""Stored elements as numpy arrays, as torch tensors and as bytes, over the same memory.

Arrays hold the bits of bfloat16, which numpy lacks, as uint16, those of float16 as int16, so that
compiled code tells them apart, and those of fp8 as uint8. Neither library is loaded before it is
used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from mergekit_cl.checkpoint.dtypes import long_name, torch_dtype

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array: TypeAlias = np.ndarray[Any, Any]

_BITS = {"BF16": "uint16", "F16": "int16", "F8_E4M3": "uint8", "F8_E5M2": "uint8"}


@cache
def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The type of an array that holds elements of a safetensors type that torch can read."""
    import numpy as np

    return np.dtype(_BITS.get(dtype) or long_name(dtype))


def empty(dtype: str, count: int) -> Array:
    """Memory for so many elements; none for a negative count."""
    import numpy as np

    return np.empty(max(count, 0), numpy_dtype(dtype))


class Arrays:
    """Arrays of one thread by their names, made once and used for every block."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], Array] = {}

    def __call__(self, name: str, dtype: str, count: int) -> Array:
        """The first `count` elements of the array of a name."""
        key = (name, dtype)
        if key not in self._made or len(self._made[key]) < count:
            self._made[key] = empty(dtype, count)
        return self._made[key][:count]

    def like(self, name: str, other: Array) -> Array:
        """The array of a name in the length and type of another, float32 or float64."""
        return self(name, {4: "F32", 8: "F64"}[other.itemsize], len(other))

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(array.nbytes for array in self._made.values())


def view(data: Any, dtype: str) -> Array:
    """The elements in memory that may be written to, such as a bytearray."""
    import numpy as np

    return np.frombuffer(data, numpy_dtype(dtype))


def concatenate(arrays: Sequence[Array]) -> Array:
    """One array of the elements of all."""
    import numpy as np

    return np.concatenate(arrays)


def as_tensor(array: Array, dtype: str) -> torch.Tensor:
    """The tensor over an array's memory; dtype: as safetensors spells what it holds."""
    import torch

    if not len(array):  # torch gives what is empty in numpy a stride of 0, which no view takes
        return torch.empty(0, dtype=torch_dtype(dtype))
    tensor = torch.from_numpy(array)
    return tensor.view(torch_dtype(dtype)) if dtype in _BITS else tensor


def as_array(tensor: torch.Tensor) -> Array:
    """The array over the memory of a flat CPU tensor."""
    import torch

    bits = {
        torch.bfloat16: torch.uint16,
        torch.float16: torch.int16,
        torch.float8_e4m3fn: torch.uint8,
        torch.float8_e5m2: torch.uint8,
    }
    array: Array = tensor.view(bits.get(tensor.dtype, tensor.dtype)).numpy()
    return array


def as_bytes(block: torch.Tensor) -> memoryview:
    """The memory of a flat CPU tensor; of a copy where it is not contiguous."""
    import torch

    return block.contiguous().view(torch.uint8).numpy().data


def widened(array: Array, dtype: str) -> Array:
    """An array of bfloat16 (its bits), float16 (likewise) or float32 as float32."""
    if dtype == "F32":
        return array
    if dtype == "F16":
        half: Array = array.view("float16").astype("float32")
        return half
    wide: Array = (array.astype("uint32") << 16).view("float32")
    return wide


def bytes_of(array: Array) -> memoryview:
    """The memory of a flat, contiguous array."""
    return array.view("uint8").data
