"""Bytes of one file read into memory by position."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_cl.checkpoint.arrays import as_tensor, bytes_of, empty
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.errors import InputError

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array
    from mergekit_cl.checkpoint.header import TensorInfo


class PositionedFile:
    """Copies made by `pread`.

    Where every byte is hashed, copying costs what the page faults of a mapping do, and a file that
    becomes shorter is an error where a mapping would end the process by a signal. The file is
    closed at the latest when nothing refers to this any more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._closing: weakref.finalize[[int], PositionedFile] | None = None
        self._opening = threading.Lock()

    def read(self, tensor: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor, flat, in its stored dtype; a copy."""
        return as_tensor(self.block(tensor, start, stop), tensor.dtype)

    def block(self, tensor: TensorInfo, start: int, stop: int) -> Array:
        """The same as an array.

        Raises InputError where the file cannot be read or has become shorter.
        """
        out = empty(tensor.dtype, stop - start)
        view = bytes_of(out)
        offset = tensor.offset + start * itemsize(tensor.dtype)
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

    def expect(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Let the system read these elements ahead, if it can."""
        size = itemsize(tensor.dtype)
        if stop <= start:  # no bytes would mean all
            return
        with suppress(OSError):  # what is wrong with the file is said when it is read
            os.posix_fadvise(
                self._opened(),
                tensor.offset + start * size,
                (stop - start) * size,
                os.POSIX_FADV_WILLNEED,
            )

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing to give back: every read is the reader's own copy."""

    def close(self) -> None:
        """Close the file."""
        if self._closing is not None:
            self._closing()
        self._descriptor = self._closing = None

    def _opened(self) -> int:
        with self._opening:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                self._closing = weakref.finalize(self, os.close, self._descriptor)
            return self._descriptor
