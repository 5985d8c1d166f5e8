"""Bytes of one file read into memory, where a mapping of it would not do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_cl.checkpoint.dtypes import itemsize, torch_dtype
from mergekit_cl.errors import InputError

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.header import TensorInfo


class PositionedFile:
    """Copies made by `pread`: for network file systems, and tensors at offsets no view can have."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def read(self, tensor: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor, flat, in its stored dtype; a copy.

        Raises InputError where the file cannot be read or has become shorter.
        """
        import torch

        size = itemsize(tensor.dtype)
        out = torch.empty(max(stop - start, 0), dtype=torch_dtype(tensor.dtype))
        view = out.view(torch.uint8).numpy().data
        offset = tensor.offset + start * size
        try:
            while view:
                count = os.preadv(self._opened(), [view], offset)
                if count == 0:
                    raise InputError(
                        "a weight file has become shorter while it was read",
                        detail=f"{self.path}: it ends in {tensor.name}",
                        hint="fetch or save it again",
                    )
                view, offset = view[count:], offset + count
        except OSError as error:
            raise InputError(
                "a weight file cannot be read", detail=f"{self.path}: {error.strerror}"
            ) from error
        return out

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing to give back: every read is the reader's own copy."""

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _opened(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor
