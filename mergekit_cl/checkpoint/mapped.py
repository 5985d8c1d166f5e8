"""Whole tensors of one file as views of it, without copying them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_cl.checkpoint.dtypes import itemsize, torch_dtype
from mergekit_cl.checkpoint.positioned import PositionedFile
from mergekit_cl.errors import InputError

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array
    from mergekit_cl.checkpoint.header import TensorInfo


class MappedFile:
    """A private read mapping of a file, made when the first view is asked for.

    Views are for building models. Blocks for streaming are copies: see PositionedFile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self._copies = PositionedFile(path)

    def read(self, tensor: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor, flat, in its stored dtype.

        A view of the file; its offset must be aligned for the dtype. Raises InputError where the
        file has become shorter. One that becomes shorter while the view is in use ends the process
        by SIGBUS: the price of not copying.
        """
        import torch

        dtype = torch_dtype(tensor.dtype)
        count = stop - start
        if count <= 0:
            return torch.empty(0, dtype=dtype)
        size = itemsize(tensor.dtype)
        offset = tensor.offset + start * size
        mapped = self._mapping()
        if mapped.size() < offset + count * size:
            raise InputError(
                "a weight file has become shorter while it was read",
                detail=f"{self.path}: it ends in {tensor.name}",
                hint="fetch or save it again",
            )
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset)

    def block(self, tensor: TensorInfo, start: int, stop: int) -> Array:
        """As PositionedFile."""
        return self._copies.block(tensor, start, stop)

    def expect(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """As PositionedFile."""
        self._copies.expect(tensor, start, stop)

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Tell the system that these elements are not needed again soon."""
        size = itemsize(tensor.dtype)
        page = mmap.PAGESIZE
        # Whole pages inside the range only: a page at either edge may be in use by a neighbour.
        begin = -(-(tensor.offset + start * size) // page) * page
        end = (tensor.offset + stop * size) // page * page
        if self._map is not None and end > begin:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def close(self) -> None:
        """Drop the mapping; it goes when the last view of it does."""
        self._map = None
        self._copies.close()

    def _mapping(self) -> mmap.mmap:
        if self._map is None:
            try:
                descriptor = os.open(self.path, os.O_RDONLY)
            except OSError as error:
                raise InputError(
                    "a weight file cannot be read", detail=f"{self.path}: {error.strerror}"
                ) from error
            try:
                # ACCESS_COPY: torch warns about read-only buffers; nothing here writes to it.
                self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
                self._map.madvise(mmap.MADV_SEQUENTIAL)
            finally:
                os.close(descriptor)
        return self._map
