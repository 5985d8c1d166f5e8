"""Which way of reading suits a weight file, and what its header says."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.checkpoint.filesystem import RemoteFile, RemoteFolder
from mergekit_cl.checkpoint.header import Header, TensorInfo, read_header
from mergekit_cl.checkpoint.mapped import MappedFile
from mergekit_cl.checkpoint.mounts import is_on_network
from mergekit_cl.checkpoint.pickled import PickledFile, is_pickle
from mergekit_cl.checkpoint.positioned import PositionedFile
from mergekit_cl.checkpoint.remote import RemoteReader, Windows
from mergekit_cl.errors import InputError

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array

HEAD_BYTES = 2**18
"""Fetched of every remote file at once; most headers are shorter."""


class Reader(Protocol):
    """Hands out elements of the tensors in one file."""

    def read(self, tensor: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop`, flat, in the stored dtype; a view where that can be."""

    def block(self, tensor: TensorInfo, start: int, stop: int) -> Array:
        """The same as an array, of memory that no change of the file can take away."""

    def expect(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Say that these elements will be read soon."""

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Say that these elements will not be read again soon."""

    def close(self) -> None:
        """Give back the file."""


@dataclass(frozen=True)
class Opened:
    """One weight file. header: None for a torch file. aliases: {tied name: canonical name}."""

    file: Path | RemoteFile
    reader: Reader
    tensors: tuple[TensorInfo, ...]
    header: Header | None = None
    aliases: dict[str, str] = field(default_factory=dict)


def open_local(path: Path) -> Opened:
    """Open a file on this disk, or on a mounted one.

    Raises FormatError for one that is no weight file, InputError for one that cannot be read.
    """
    try:
        if is_pickle(path):
            pickled = PickledFile(path)
            return Opened(path, pickled, pickled.infos(), None, pickled.aliases)
        with path.open("rb") as stream:
            header = read_header(stream, path.stat().st_size, str(path))
    except OSError as error:
        raise InputError(
            "a weight file cannot be read", detail=f"{path}: {error.strerror}"
        ) from error
    by_view = all(map(_is_aligned, header.tensors)) and not is_on_network(path)
    reader = MappedFile(path) if by_view else PositionedFile(path)
    return Opened(path, reader, header.tensors, header)


def open_remote(files: tuple[RemoteFile, ...], source: RemoteFolder) -> list[Opened]:
    """Open files beyond this disk; they share what is held of them in memory."""
    windows = Windows(source.fetch)
    heads = source.heads(files, HEAD_BYTES)
    opened = []
    for file, head in zip(files, heads, strict=True):
        length = 8 + int.from_bytes(head[:8], "little")
        # A header that claims more than the file is refused by what reads it.
        if len(head) < length <= file.nbytes:
            head += source.fetch(file, len(head), length)
        header = read_header(io.BytesIO(head), file.nbytes, str(file))
        opened.append(Opened(file, RemoteReader(file, windows), header.tensors, header))
    return opened


def _is_aligned(tensor: TensorInfo) -> bool:
    # A tensor without bytes can lie anywhere; packed types are never handed out.
    return tensor.offset % max(itemsize(tensor.dtype), 1) == 0 or not tensor.nbytes
