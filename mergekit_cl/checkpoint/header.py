"""What the bytes of a safetensors file mean; no other file knows the layout.

A file is: 8 bytes little-endian header length, that many bytes of JSON, then the tensors without
gaps. JSON: {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [begin, end]}}.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, BinaryIO, NamedTuple

from mergekit_cl.checkpoint.dtypes import BITS
from mergekit_cl.errors import FormatError

MAX_HEADER_BYTES = 100_000_000  # the library's own bound
_RANK = {dtype: rank for rank, dtype in enumerate(BITS)}
_KEYS = {"dtype", "shape", "data_offsets"}
_INTEGERS = {int}


class TensorInfo(NamedTuple):
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
    if not _is_text([*entries, *metadata, *metadata.values()]):
        raise _broken("holds a name that is not text", where)
    data_start = 8 + length
    described = [_entry(name, entry, where) for name, entry in entries.items()]
    described.sort(key=itemgetter(0, 1))
    end = 0
    for entry in described:
        if entry[0] != end:
            what = "overlap" if entry[0] < end else "leave a gap"
            raise _broken(f"has tensors that {what}", f"{where}: {entry[2]}")
        end = entry[1]
    if data_start + end != file_bytes:
        state = (
            "is truncated" if data_start + end > file_bytes else "has bytes after its last tensor"
        )
        detail = f"{where}: header says {data_start + end} bytes, the file has {file_bytes}"
        raise _broken(state, detail)
    tensors = tuple(
        TensorInfo(name, dtype, shape, data_start + begin)
        for begin, _, name, dtype, shape in described
    )
    return Header(tensors, metadata, file_bytes, prefix + raw)


def serialize(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    *,
    length: int = 0,
) -> Header:
    """Lay out a file for (name, dtype, shape) triples and write its header.

    length: bytes of the header at least, filled with spaces, so that tensors can be written to
    their places before the metadata is known.

    The order is the library's (element type, then name) and the header is padded to 8 bytes, so a
    file written so equals the one `safetensors.torch.save_file` writes.
    """
    ordered = sorted(tensors, key=lambda tensor: (-_RANK[tensor[1]], tensor[0]))
    quoted = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    lines = []
    if metadata:
        lines.append(f'"__metadata__":{quoted(dict(sorted(metadata.items())))}')
    position = 0
    begins = []
    for name, dtype, shape in ordered:
        end = position + math.prod(shape) * BITS[dtype] // 8
        lines.append(
            f'{quoted(name)}:{{"dtype":"{dtype}","shape":[{",".join(map(str, shape))}],'
            f'"data_offsets":[{position},{end}]}}'
        )
        begins.append(position)
        position = end
    text = f"{{{','.join(lines)}}}".encode()
    text += b" " * max(length - 8 - len(text), -len(text) % 8)
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
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise _broken("names a tensor twice", f"{where}: {twice}")
        return made

    try:
        # Decoded here: from bytes, json would also take UTF-16 and a byte order mark.
        entries = json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _broken("has a header that is not JSON", where) from error
    if not isinstance(entries, dict):
        raise _broken("has a header that is not a JSON object", where)
    return entries


def _entry(name: str, entry: Any, where: str) -> tuple[int, int, str, str, tuple[int, ...]]:
    """(begin, end, name, dtype, shape) of one tensor; bytes count from the first tensor's."""
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise _broken("describes a tensor incompletely", f"{where}: {name}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken("has a tensor of unknown dtype", f"{where}: {name}: {dtype!r:.40}")
    if not isinstance(shape, list) or len(shape) > 64:
        raise _broken("has a tensor of impossible shape", f"{where}: {name}: {shape!r:.40}")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise _broken("has a tensor of impossible offsets", f"{where}: {name}: {offsets!r:.40}")
    if not _are_counts(shape + offsets):  # both at once: most of the time goes here
        what, seen = ("offsets", offsets) if not shape or _are_counts(shape) else ("shape", shape)
        raise _broken(f"has a tensor of impossible {what}", f"{where}: {name}: {seen!r:.40}")
    begin, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        detail = f"{where}: {name}: {dtype}{shape!r:.40} between bytes {begin} and {end}"
        raise _broken("has a tensor whose size is not what its shape says", detail)
    return begin, end, name, dtype, tuple(shape)


def _is_text(names: list[str]) -> bool:
    """Whether UTF-8 can hold them: JSON can escape half a surrogate pair, which is no character."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_counts(values: list[Any]) -> bool:
    """Whether these, one at least, are numbers of bytes or elements: integers, no truth values."""
    return set(map(type, values)) == _INTEGERS and min(values) >= 0 and max(values) < 2**62


def _broken(what: str, detail: str) -> FormatError:
    return FormatError(
        f"the file {what}", detail=detail, hint="fetch or save the file again; it was not changed"
    )
