"""Weight files of exactly the planned size, filled at planned offsets in any order."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mergekit_cl.layout import Layout, Shard
from mergekit_cl.output.durable import sync

_WRITE = 2  # SYNC_FILE_RANGE_WRITE of Linux: begin to write, wait for nothing
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class ShardFiles:
    """Open files of a layout, each created at its full size with its header in place."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self._open: dict[str, int] = {}

    def create(self, shard: Shard) -> None:
        """Make the file, reserve its bytes on the disk (OSError when full), write its header."""
        descriptor = os.open(self.folder / shard.file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._open[shard.file] = descriptor
        os.posix_fallocate(descriptor, 0, shard.header.file_bytes)
        write_all(descriptor, shard.header.raw, 0)

    def reopen(self, shard: Shard) -> None:
        """Open a file an earlier run made, keeping its bytes; make it where it is not whole."""
        if self.is_whole(shard):
            self._open[shard.file] = os.open(self.folder / shard.file, os.O_RDWR)
        else:
            self.create(shard)

    def is_whole(self, shard: Shard) -> bool:
        """Whether the file is there and has its full size."""
        path = self.folder / shard.file
        return path.is_file() and path.stat().st_size == shard.header.file_bytes

    def sync(self) -> None:
        """Force what is written so far to the disk."""
        for descriptor in list(self._open.values()):
            os.fsync(descriptor)
        sync(self.folder)

    def writer(self, file: str, base: int) -> Callable[[memoryview, int], None]:
        """A function that writes (bytes, offset from `base`) into one file.

        Callers on several threads never overlap.
        """
        descriptor = self._open[file]
        return lambda data, offset: write_all(descriptor, data, base + offset)

    def writer_of_several(
        self, file: str, places: Sequence[tuple[int, int]]
    ) -> Callable[[memoryview], None]:
        """A function that writes tensors that follow each other in memory into one file.

        places: (offset in the file, bytes) of each. Those that follow each other there too are
        written together.
        """
        descriptor = self._open[file]
        joined: list[tuple[int, int]] = []
        for offset, nbytes in places:
            if joined and sum(joined[-1]) == offset:
                joined[-1] = (joined[-1][0], joined[-1][1] + nbytes)
            else:
                joined.append((offset, nbytes))

        def write(data: memoryview) -> None:
            begin = 0
            for offset, nbytes in joined:
                write_all(descriptor, data[begin : begin + nbytes], offset)
                begin += nbytes

        return write

    def start_writing(self, file: str, begin: int, end: int) -> None:
        """Let the disk take in these bytes of a file while others are still being made.

        Nothing relies on it: `finish` forces the file to the disk, and has less left to wait for.
        """
        descriptor = self._open.get(file)
        if descriptor is not None and _sync_file_range is not None:
            _sync_file_range(descriptor, begin, end - begin, _WRITE)

    def finish(self, file: str) -> None:
        """Force one file, and that it is there, to the disk and close it."""
        descriptor = self._open.pop(file)
        os.fsync(descriptor)
        os.close(descriptor)
        sync(self.folder)

    def close(self) -> None:
        """Close what is open without forcing it to the disk."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """`pwrite` until every byte is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
