"""One model's tensors, wherever and however they are stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint.arrays import concatenate
from mergekit_cl.checkpoint.dtypes import READABLE, itemsize
from mergekit_cl.checkpoint.filesystem import RemoteFile
from mergekit_cl.checkpoint.header import Header, TensorInfo
from mergekit_cl.checkpoint.hub import HUB
from mergekit_cl.checkpoint.place import Place
from mergekit_cl.checkpoint.places import locate
from mergekit_cl.checkpoint.readers import Opened, Reader, open_local, open_remote
from mergekit_cl.checkpoint.remote import WINDOW, WINDOWS_PER_THREAD
from mergekit_cl.checkpoint.stamp import Stamp, stamp
from mergekit_cl.checkpoint.urls import as_typed, is_url, local_path, shown
from mergekit_cl.errors import FormatError, InputError

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array


class Checkpoint:
    """Names, dtypes and shapes from headers alone; elements on demand.

    path: as the user gave it; text, and without secrets, where that is a URL. root: folder with
    config and tokenizer, always on this disk. tensors: canonical names in file order. aliases:
    {tied name: canonical name}. config: `config.json`, or None. folder: whether the path names a
    whole folder. here: the path on this disk, or None. revision: the commit of a model on the hub.
    opened_as: the stamps of `files` before anything was read.
    """

    def __init__(
        self, path: str | Path, place: Place, opened_files: Sequence[Opened] | None = None
    ) -> None:
        """opened_files: the place's files, where they are to be read in another way than usual."""
        self.path = _as_told(path)
        self.root = place.root
        self.files = place.files
        self.side_folder = place.side_folder
        self.folder = place.folder
        self.here = None if is_url(str(self.path)) else Path(self.path)
        self.revision = place.revision
        self.tensors: dict[str, TensorInfo] = {}
        self.aliases: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.headers: dict[str, Header] = {}
        # Before any of it is read: what changes from here on can be told.
        self.opened_as = [_stamp(file) for file in place.files]
        self._source = place.source
        self._readers: dict[str, Reader] = {}
        self._file_of: dict[str, Path | RemoteFile] = {}
        held: dict[str, str] = {}
        for opened in _open_files(place) if opened_files is None else opened_files:
            names = self._take(opened)
            _check_apart(names, held, opened.file)
            held.update(dict.fromkeys(names, opened.file.name))
        if place.weight_map is not None:
            _check_index(str(self.path), place.weight_map, held)
        self.config = _read_config(place.root / "config.json")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor, flat, in the stored dtype; usually a view.

        Raises InputError for packed types, and where a place beyond this disk fails.
        """
        tensor = self.tensors[name]
        self._check_readable(tensor)
        return self._readers[name].read(tensor, start, tensor.numel if stop is None else stop)

    def block(self, tensor: TensorInfo, start: int, stop: int) -> Array:
        """Elements `start` to `stop` of a tensor for streaming, as checkpoint/arrays.py holds them.

        Raises what `read` does, and InputError where the file has become shorter.
        """
        self._check_readable(tensor)
        return self._readers[tensor.name].block(tensor, start, stop)

    def blocks(self, tensors: Sequence[TensorInfo], counts: Sequence[int]) -> Array:
        """All elements of several small tensors of one dtype, one after the other.

        counts: elements of each.
        """
        first = tensors[0]
        self._check_readable(first)
        reader, size = self._readers[first.name], itemsize(first.dtype)
        *places, _ = accumulate((count * size for count in counts), initial=first.offset)
        # Offset 0 is that of tensors in a torch file, which are not known to lie anywhere.
        if (
            first.offset
            and [tensor.offset for tensor in tensors] == places
            and all(self._readers[tensor.name] is reader for tensor in tensors)
        ):  # side by side: one read
            elements = sum(counts)
            return reader.block(first._replace(shape=(elements,)), 0, elements)
        parts = zip(tensors, counts, strict=True)
        return concatenate([self.block(tensor, 0, count) for tensor, count in parts])

    def expect(self, name: str, start: int, stop: int) -> None:
        """Say that these elements will be read soon."""
        self._readers[name].expect(self.tensors[name], start, stop)

    def tensor(self, name: str) -> torch.Tensor:
        """A copy of one whole tensor in its shape."""
        return self.read(name).clone().reshape(self.tensors[name].shape)

    def release(self, name: str, start: int, stop: int) -> None:
        """Say that these elements will not be read again soon."""
        self._readers[name].release(self.tensors[name], start, stop)

    def file_of(self, name: str) -> Path | RemoteFile:
        """The file that holds a tensor."""
        return self._file_of[name]

    def file_bytes(self, file: Path | RemoteFile) -> int:
        """Size of a weight file."""
        return file.nbytes if isinstance(file, RemoteFile) else file.stat().st_size

    def stamps(self) -> list[list[str | int]]:
        """[file, bytes, time or version] of every weight file as it was opened: unequal after a
        change that does not hide itself.
        """
        return [[one.path, one.nbytes, one.version] for one in self.opened_as]

    def beside(self, name: str) -> str | Path | None:
        """A file in the side folder, as `open_checkpoint` takes it; None where it is not there."""
        if self._source is None:
            path = self.side_folder / name
            return path if path.is_file() else None
        found = self._source.find(f"{self.side_folder.name}/{name}", optional=True)
        return None if found is None else found.url

    def read_beside(self, name: str) -> bytes | None:
        """The content of a small file in the side folder; None where it is not there."""
        if self._source is None:
            path = self.side_folder / name
            return path.read_bytes() if path.is_file() else None
        found = self._source.find(f"{self.side_folder.name}/{name}", optional=True)
        return None if found is None else self._source.fetch(found, 0, found.nbytes)

    @property
    def side_place(self) -> str:
        """The side folder's place as messages show it."""
        return str(self.side_folder if self.here else f"{self.path}/{self.side_folder.name}")

    @property
    def buffer_bytes(self) -> int:
        """Bytes of memory that reading takes per thread, besides the blocks handed out."""
        return 0 if self._source is None else WINDOW * WINDOWS_PER_THREAD

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def close(self) -> None:
        """Give back the files."""
        for reader in self._readers.values():
            reader.close()
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _check_readable(self, tensor: TensorInfo) -> None:
        if tensor.dtype not in READABLE:
            raise InputError(
                "weights of this dtype can be described, not read",
                detail=f"{self.path}: {tensor.name} is {tensor.dtype}",
                hint="use the model in bfloat16, float16 or float32",
            )

    def _take(self, opened: Opened) -> list[str]:
        """Take in one file; gives the names of its tensors, tied ones too."""
        names = [tensor.name for tensor in opened.tensors]
        self.tensors.update(zip(names, opened.tensors, strict=True))
        self._readers.update(dict.fromkeys(names, opened.reader))
        self._file_of.update(dict.fromkeys(names, opened.file))
        self.aliases.update(opened.aliases)
        if opened.header is not None:
            self.headers[opened.file.name] = opened.header
            self.metadata.update(opened.header.metadata)
        return [*names, *opened.aliases]


def open_checkpoint(path: str | Path, *, headers_only: bool = False) -> Checkpoint:
    """Open the checkpoint at PATH from its headers.

    headers_only: nothing else will be read, so that the weights of a model on the hub are not
    fetched. Raises InputError or FormatError where it is missing, truncated or inconsistent.
    """
    return Checkpoint(path, locate(path, headers_only=headers_only))


def _as_told(path: str | Path) -> str | Path:
    text = as_typed(path)
    if not is_url(text):
        return Path(path)
    here = local_path(text)
    if here is not None:
        return here
    return text if text.startswith(HUB) else shown(text)


def _stamp(file: Path | RemoteFile) -> Stamp:
    try:
        return stamp(file)
    except OSError as error:
        raise InputError(
            "a weight file cannot be read", detail=f"{file}: {error.strerror}"
        ) from error


def _open_files(place: Place) -> list[Opened]:
    remote = tuple(file for file in place.files if isinstance(file, RemoteFile))
    if place.source is not None:
        return open_remote(remote, place.source)
    return [open_local(file) for file in place.files if not isinstance(file, RemoteFile)]


def _check_apart(names: list[str], held: dict[str, str], file: Path | RemoteFile) -> None:
    """Refuse a tensor that an earlier file holds; held: {name: file name}."""
    if held.keys().isdisjoint(names):
        return
    twice = next(name for name in names if name in held)
    raise FormatError(
        "a tensor is in two files",
        detail=f"{file}: {twice} is in {held[twice]} too",
        hint="fetch or save the checkpoint again",
    )


def _check_index(where: str, weight_map: dict[str, str], held: dict[str, str]) -> None:
    """Refuse an index that does not say of every tensor which file holds it."""
    if held == weight_map:
        return
    for name, file in weight_map.items():
        if held.get(name) != file:
            raise FormatError(
                "the index names a tensor that its file does not hold",
                detail=f"{where}: {name} in {file}",
                hint="fetch or save the checkpoint again",
            )
    extra = sorted(held.keys() - weight_map.keys())
    raise FormatError(
        f"the index leaves out {len(extra)} tensors of its files",
        detail=f"{where}: {', '.join(extra[:3])}",
        hint="fetch or save the checkpoint again",
    )


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            "config.json cannot be read", detail=f"{path}: {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise FormatError("config.json is not JSON", detail=f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise FormatError("config.json is not a JSON object", detail=str(path))
    return config
