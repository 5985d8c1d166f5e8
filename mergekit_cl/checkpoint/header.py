"""What the bytes of a safetensors file mean; no other file knows the layout.

A file is: 8 bytes little-endian header length, that many bytes of JSON, then the tensors without
gaps. JSON: {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [begin, end]}}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from mergekit_cl.checkpoint.dtypes import BITS
from mergekit_cl.errors import FormatError

MAX_HEADER_BYTES = 100_000_000  # the library's own bound
_RANK = {dtype: rank for rank, dtype in enumerate(BITS)}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor; `offset` counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.numel * BITS[self.dtype] // 8

    @property
    def is_float(self) -> bool:
        """Whether a merge computes with it."""
        return self.dtype in ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Header:
    """A validated header: tensors in file order, string metadata, bytes of the whole file."""

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    file_bytes: int
    raw: bytes


def read_header(stream: BinaryIO, file_bytes: int, where: str) -> Header:
    """Read and validate the header at the start of `stream`.

    where: the file's name for messages. Raises FormatError on a truncated file and on a header
    that lies about offsets, sizes, dtypes or counts, or names a tensor twice.
    """
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise _broken("is too short to be a safetensors file", f"{where}: {file_bytes} bytes")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES or 8 + length > file_bytes:
        raise _broken("has a header longer than the file", f"{where}: header of {length} bytes")
    raw = stream.read(length)
    if len(raw) < length:
        raise _broken("is truncated inside its header", where)
    entries = _parse_json(raw, where)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken("has metadata that is not text", f"{where}: __metadata__")
    data_start = 8 + length
    tensors = sorted(
        (_entry(name, entry, data_start, where) for name, entry in entries.items()),
        key=lambda tensor: (tensor.offset, tensor.nbytes),
    )
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            what = "overlap" if tensor.offset < position else "leave a gap"
            raise _broken(f"has tensors that {what}", f"{where}: {tensor.name}")
        position += tensor.nbytes
    if position != file_bytes:
        state = "is truncated" if position > file_bytes else "has bytes after its last tensor"
        raise _broken(state, f"{where}: header says {position} bytes, the file has {file_bytes}")
    return Header(tuple(tensors), metadata, file_bytes, prefix + raw)


def serialize(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> Header:
    """Lay out a file for (name, dtype, shape) triples and write its header.

    The order is the library's (element type, then name) and the header is padded to 8 bytes, so a
    file written so equals the one `safetensors.torch.save_file` writes.
    """
    ordered = sorted(tensors, key=lambda tensor: (-_RANK[tensor[1]], tensor[0]))
    entries: dict[str, Any] = {}
    if metadata:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    begins = []
    for name, dtype, shape in ordered:
        end = position + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        begins.append(position)
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    laid_out = tuple(
        TensorInfo(name, dtype, tuple(shape), start + begin)
        for (name, dtype, shape), begin in zip(ordered, begins, strict=True)
    )
    return Header(laid_out, metadata, start + position, len(text).to_bytes(8, "little") + text)


def _parse_json(raw: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _broken("names a tensor twice", f"{where}: {twice}")
        return made

    try:
        entries = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _broken("has a header that is not JSON", where) from error
    if not isinstance(entries, dict):
        raise _broken("has a header that is not a JSON object", where)
    return entries


def _entry(name: str, entry: Any, data_start: int, where: str) -> TensorInfo:
    place = f"{where}: {name}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _broken("describes a tensor incompletely", place)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken("has a tensor of unknown dtype", f"{place}: {dtype!r:.40}")
    if not _counts(shape) or len(shape) > 64:
        raise _broken("has a tensor of impossible shape", f"{place}: {shape!r:.40}")
    if not _counts(offsets) or len(offsets) != 2:
        raise _broken("has a tensor of impossible offsets", f"{place}: {offsets!r:.40}")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        detail = f"{place}: {dtype}{shape!r:.40} between bytes {offsets[0]} and {offsets[1]}"
        raise _broken("has a tensor whose size is not what its shape says", detail)
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0])


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**62 for value in values
    )


def _broken(what: str, detail: str) -> FormatError:
    return FormatError(
        f"the file {what}", detail=detail, hint="fetch or save the file again; it was not changed"
    )
