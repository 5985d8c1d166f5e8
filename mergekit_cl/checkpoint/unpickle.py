"""Torch's own files read by its weights-only loader, after a look at what they claim.

The loader runs no code, but it believes sizes: it would reserve any number of bytes that a pickle
names, and take a neighbour's bytes for those that a short record lacks.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint.legacy import check_legacy, is_legacy
from mergekit_cl.errors import ClmergeError, FormatError

if TYPE_CHECKING:
    import torch


def load(path: Path) -> Any:
    """What `torch.save` put into a file; tensors of an archive (torch 1.6 and later) stay in it.

    Raises FormatError for anything but weights and plain values, and for every damage.
    """
    import torch

    try:
        if zipfile.is_zipfile(path):
            _check_directory(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with _Clamped(path) as stream:
            if not stream.peek(4).startswith(b"PK"):
                if not is_legacy(stream):
                    raise _more_than_weights(path, "a plain pickle, not written by torch.save")
                stream.seek(0)
                check_legacy(stream, stream.size, path)
                stream.seek(0)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except ClmergeError:
        raise
    except pickle.UnpicklingError as error:
        raise _more_than_weights(path, _first_line(error)) from error
    # A damaged pickle calls torch's constructors with anything: what they raise has no end.
    except Exception as error:
        raise damaged(path, _first_line(error)) from error


def check_records(path: Path, tensors: Iterable[torch.Tensor]) -> None:
    """Refuse an archive with a tensor whose memory is not exactly one record of it.

    tensors: as `load` gave them. The mapping's own address is not told: it is the one place from
    which every storage is found where a record lies.
    """
    storages = {tensor.untyped_storage() for tensor in tensors}
    held = {(storage.data_ptr(), storage.nbytes()) for storage in storages if storage.nbytes()}
    if not held or not zipfile.is_zipfile(path):
        return
    records = _records(path)
    pointer, size = next(iter(held))
    for start in (start for start, length in records.items() if length == size):
        base = pointer - start
        if all(records.get(place - base) == count for place, count in held):
            return
    raise damaged(path, "a tensor is longer or shorter than its record")


def _more_than_weights(path: Path, what: str) -> FormatError:
    return FormatError(
        "the file holds more than weights, and only weights are ever unpickled",
        detail=f"{path}: {what}",
        hint="save its state dict alone: torch.save(model.state_dict(), ...)",
    )


def damaged(path: Path, what: str) -> FormatError:
    """The error for a torch file that cannot be right."""
    return FormatError(
        "the file is truncated or is no torch checkpoint",
        detail=f"{path}: {what}",
        hint="fetch or save the file again; it was not changed",
    )


class _Clamped(io.BufferedReader):
    """A file that never reserves more for a read than is left of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _check_directory(path: Path) -> None:
    """Refuse an archive whose directory claims more bytes than the file has: they are reserved."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    size = path.stat().st_size
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size > size:
            raise damaged(path, f"{record.filename!r:.80} claims {record.file_size} bytes")


def _records(path: Path) -> dict[int, int]:
    """{offset of its bytes: how many} of every record in an archive."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for record in archive.infolist():
            stream.seek(record.header_offset)
            head = stream.read(30)
            lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:], "little")
            if head[:4] == b"PK\x03\x04":
                found[record.header_offset + 30 + lengths] = record.file_size
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__:.120}"
