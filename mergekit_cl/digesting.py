"""Digests of a checkpoint's tensors, read once, at the speed of the disk, on every core.

A unit of work is a run of digest pieces of at most 16 MiB together: one huge tensor occupies every
core, and thousands of small ones cost little more than their bytes. Files are read in order, with
`pread` into one small buffer per thread: a file that shrinks is an error, not a crash.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.arrays import as_bytes
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.digest import PIECE_BYTES, tensor_digest
from mergekit_cl.errors import InputError

BUFFER_BYTES = 2**20
"""Per thread; small enough to be hashed while it is in the core's cache."""

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Piece `number` of a tensor, bytes `begin` to `end` of it.

    path: the file it is read from, from `offset` on. held: its bytes, where they are in memory.
    Neither: the checkpoint hands them out.
    """

    name: str
    number: int
    begin: int
    end: int
    path: Path | None = None
    offset: int = 0
    held: memoryview | None = None


def checkpoint_digests(
    checkpoint: Checkpoint,
    *,
    names: Collection[str] | None = None,
    threads: int | None = None,
    advance: Advance | None = None,
) -> dict[str, str]:
    """The digest of every tensor, or of those named.

    threads: default one per core. advance: told the bytes read, from any thread. Raises InputError
    where a file cannot be read or has become shorter, after every thread has stopped.
    """
    wanted = [name for name in checkpoint.tensors if names is None or name in names]
    found: dict[str, dict[int, bytes]] = {name: {} for name in wanted}
    units = _units(checkpoint, wanted)
    stop = threading.Event()
    lock = threading.Lock()

    def next_unit() -> list[Piece] | None:
        with lock:
            return None if stop.is_set() else next(units, None)

    def work() -> None:
        try:
            with _Reader(checkpoint) as reader:
                while (unit := next_unit()) is not None:
                    for piece in unit:
                        found[piece.name][piece.number] = reader.digest(piece)
                    if advance is not None:
                        advance(sum(piece.end - piece.begin for piece in unit))
        finally:
            stop.set()  # nothing is left, or something failed

    workers = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for future in futures:
        future.result()
    return {
        name: tensor_digest(pieces[number] for number in range(len(pieces)))
        for name, pieces in found.items()
    }


def _units(checkpoint: Checkpoint, names: Collection[str]) -> Iterator[list[Piece]]:
    """Runs of pieces in file order, of at most `PIECE_BYTES` together."""
    unit: list[Piece] = []
    filled = 0
    for piece in _pieces(checkpoint, names):
        size = piece.end - piece.begin
        if unit and filled + size > PIECE_BYTES:
            yield unit
            unit, filled = [], 0
        unit.append(piece)
        filled += size
    if unit:
        yield unit


def _pieces(checkpoint: Checkpoint, names: Collection[str]) -> Iterator[Piece]:
    for name in names:
        tensor = checkpoint.tensors[name]
        file = checkpoint.file_of(name)
        is_torch = file.name not in checkpoint.headers
        path = file if isinstance(file, Path) and not is_torch else None
        # The tensors of a torch file are views of it; one that is not contiguous is copied once,
        # here, and lives until its pieces are hashed.
        held = as_bytes(checkpoint.read(name)) if is_torch and tensor.numel else None
        for number, begin in enumerate(range(0, tensor.nbytes, PIECE_BYTES)):
            end = min(begin + PIECE_BYTES, tensor.nbytes)
            part = None if held is None else held[begin:end]
            yield Piece(name, number, begin, end, path, tensor.offset + begin, part)


class _Reader:
    """One thread's buffer and the one file it has open."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._path: Path | None = None
        self._descriptor = -1

    def digest(self, piece: Piece) -> bytes:
        """The 32-byte digest of one piece."""
        if piece.held is not None:
            return blake3(piece.held).digest()
        if piece.path is None:
            return self._handed_out(piece)
        try:
            return self._from_file(piece, piece.path)
        except OSError as error:
            raise InputError(
                "a weight file cannot be read", detail=f"{piece.path}: {error.strerror or error}"
            ) from error

    def _handed_out(self, piece: Piece) -> bytes:
        size = itemsize(self._checkpoint.tensors[piece.name].dtype)
        digest = blake3()
        for begin in range(piece.begin, piece.end, BUFFER_BYTES):
            end = min(begin + BUFFER_BYTES, piece.end)
            digest.update(as_bytes(self._checkpoint.read(piece.name, begin // size, end // size)))
        self._checkpoint.release(piece.name, piece.begin // size, piece.end // size)
        return digest.digest()

    def _from_file(self, piece: Piece, path: Path) -> bytes:
        descriptor = self._open(path)
        digest = blake3()
        position, left = piece.offset, piece.end - piece.begin
        while left:
            count = os.preadv(descriptor, [self._buffer[: min(BUFFER_BYTES, left)]], position)
            if not count:
                raise InputError(
                    "a weight file became shorter while it was read",
                    detail=f"{path}: {piece.name} ends beyond the file",
                    hint="wait until nothing writes to it",
                )
            digest.update(self._buffer[:count])
            position, left = position + count, left - count
        return digest.digest()

    def _open(self, path: Path) -> int:
        if path != self._path:
            self._close()
            self._descriptor = os.open(path, os.O_RDONLY)
            self._path = path
        return self._descriptor

    def _close(self) -> None:
        if self._path is not None:
            os.close(self._descriptor)
            self._path = None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
