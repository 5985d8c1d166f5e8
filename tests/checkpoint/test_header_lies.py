"""A header that lies is refused by FormatError, whatever the lie."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from making import raw_safetensors
from safetensors.torch import save

from mergekit_cl.checkpoint.header import MAX_HEADER_BYTES, Header, read_header
from mergekit_cl.errors import FormatError


def read(content: bytes) -> Header:
    return read_header(io.BytesIO(content), len(content), "x.safetensors")


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


GOOD = raw_safetensors({"a": entry(), "b": entry(offsets=(8, 16))}, bytes(16))
LIES = {
    "shorter than a length": GOOD[:7],
    "empty": b"",
    "length beyond the file": (10**6).to_bytes(8, "little") + GOOD[8:],
    "length of 2^64 - 1": b"\xff" * 8 + GOOD[8:],
    "length above the library's bound": (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + GOOD[8:],
    "cut inside the header": GOOD[:40],
    "cut inside a tensor": GOOD[:-1],
    "bytes after the last tensor": GOOD + b"\0",
    "no JSON": raw_safetensors(b"not json at all"),
    "empty header": raw_safetensors(b""),
    "two JSON documents": raw_safetensors(b"{}{}"),
    "JSON of another kind": raw_safetensors([1, 2]),
    "not UTF-8": raw_safetensors(b'{"\xff": {}}'),
    "UTF-16": raw_safetensors(json.dumps({"a": entry()}).encode("utf-16-le"), bytes(8)),
    "byte order mark": raw_safetensors(
        b"\xef\xbb\xbf" + json.dumps({"a": entry()}).encode(), bytes(8)
    ),
    "name that is no text": raw_safetensors(
        b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)
    ),
    "nesting without end": raw_safetensors(b"[" * 200_000),
    "nesting inside a tensor": raw_safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "overlap": raw_safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "two tensors on the same bytes": raw_safetensors({"a": entry(), "b": entry()}, bytes(8)),
    "gap": raw_safetensors({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)),
    "gap before the first": raw_safetensors({"a": entry(offsets=(4, 12))}, bytes(12)),
    "more bytes than the shape": raw_safetensors({"a": entry(offsets=(0, 12))}, bytes(12)),
    "fewer bytes than the shape": raw_safetensors({"a": entry(offsets=(0, 4))}, bytes(4)),
    "another dtype of the shape": raw_safetensors({"a": entry(dtype="F64")}, bytes(8)),
    "offsets that go backwards": raw_safetensors({"a": entry(offsets=(8, 0))}, bytes(8)),
    "negative offset": raw_safetensors({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "one offset": raw_safetensors({"a": entry(offsets=(0,))}, bytes(8)),
    "three offsets": raw_safetensors({"a": entry(offsets=(0, 8, 8))}, bytes(8)),
    "offsets that are no list": raw_safetensors({"a": entry(offsets="08")}, bytes(8)),
    "offset that is a float": raw_safetensors({"a": entry(offsets=(0, 8.0))}, bytes(8)),
    "offset that is a truth value": raw_safetensors({"a": entry("U8", (1,), (False, True))}, b"x"),
    "huge offsets": raw_safetensors({"a": entry(offsets=(2**63, 2**63 + 8))}, bytes(8)),
    "number of thousands of digits": raw_safetensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,' + b"9" * 5000 + b"]}}", bytes(8)
    ),
    "negative dimension": raw_safetensors({"a": entry(shape=(-2,))}, bytes(8)),
    "two negative dimensions": raw_safetensors({"a": entry(shape=(-1, -2))}, bytes(8)),
    "dimension that is a float": raw_safetensors({"a": entry(shape=(2.0,))}, bytes(8)),
    "dimension that is text": raw_safetensors({"a": entry(shape=("2",))}, bytes(8)),
    "shape that is a number": raw_safetensors({"a": entry(shape=2)}, bytes(8)),
    "shape whose product wraps to the size": raw_safetensors(
        {"a": entry("U8", (2**32, 2**32), (0, 0))}
    ),
    "huge dimension beside a zero is no excuse": raw_safetensors(
        {"a": entry("U8", (2**70, 0), (0, 0))}
    ),
    "NaN as a dimension": raw_safetensors({"a": entry(shape=(float("nan"),))}, bytes(8)),
    "unknown dtype": raw_safetensors({"a": entry(dtype="F31")}, bytes(8)),
    "dtype in small letters": raw_safetensors({"a": entry(dtype="f32")}, bytes(8)),
    "dtype that is a number": raw_safetensors({"a": entry(dtype=32)}, bytes(8)),
    "dtype that cannot be hashed": raw_safetensors({"a": entry(dtype=["F32"])}, bytes(8)),
    "half a byte": raw_safetensors({"a": entry("F4", (3,), (0, 1))}, b"x"),
    "no dtype": raw_safetensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "no shape": raw_safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "no offsets": raw_safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "tensor that is a list": raw_safetensors({"a": [1]}, bytes(8)),
    "tensor that is null": raw_safetensors({"a": None}, bytes(8)),
    "name given twice": raw_safetensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        b"xy",
    ),
    "dtype given twice": raw_safetensors(
        b'{"a":{"dtype":"I8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"
    ),
    "metadata that is a list": raw_safetensors({"__metadata__": ["format"]}),
    "metadata that is a number": raw_safetensors({"__metadata__": {"format": 1}}),
    "metadata nested": raw_safetensors({"__metadata__": {"format": {"is": "pt"}}}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(lie: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(LIES[lie])
    assert "x.safetensors" in (caught.value.detail or "")


def test_the_honest_file_beside_these_lies_is_read() -> None:
    assert [t.name for t in read(GOOD).tensors] == ["a", "b"]


def test_a_file_that_shrinks_while_it_is_opened_is_truncated() -> None:
    with pytest.raises(FormatError, match="truncated"):
        read_header(io.BytesIO(GOOD[:30]), len(GOOD), "x.safetensors")


def test_the_tensor_at_fault_is_named() -> None:
    content = raw_safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12))
    with pytest.raises(FormatError) as caught:
        read(content)
    assert (caught.value.detail or "").endswith(": b")


FILES = [
    GOOD,
    save({"w": torch.ones(3), "v": torch.ones(2, 2).bfloat16()}, metadata={"format": "pt"}),
    save({"x": torch.zeros(0, 3), "y": torch.tensor(1), "é\n": torch.zeros(2).half()}),
    raw_safetensors({}),
]
TOKENS = [*'{}[]",:-.eE\\/ntuf0123456789 ', "\\u", "null", "true", "NaN", "99999999999", "F64"]
EDITS = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.integers(0, 3),
        st.one_of(st.sampled_from([t.encode() for t in TOKENS]), st.binary(max_size=2)),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=3000)
@given(st.sampled_from(FILES), EDITS, st.booleans())
def test_a_damaged_header_is_refused_or_read_as_the_library_reads_it(
    content: bytes, edits: list[tuple[int, int, bytes]], mend_length: bool
) -> None:
    length = int.from_bytes(content[:8], "little")
    # With a mended length the damage lies in the JSON, else it may lie in the length as well.
    head, rest = (content[8 : 8 + length], content[8 + length :]) if mend_length else (content, b"")
    for position, removed, put in edits:
        at = position % (len(head) + 1)
        head = head[:at] + put + head[at + removed :]
    assume(b"-0" not in head)  # Python reads it as the integer 0, the library as a float
    damaged = len(head).to_bytes(8, "little") + head + rest if mend_length else head
    try:
        header = read(damaged)
    except FormatError:
        return
    theirs = {name: (e["dtype"], e["shape"], e["data"]) for name, e in _library(damaged)}
    ours = {
        t.name: (t.dtype, list(t.shape), damaged[t.offset : t.offset + t.nbytes])
        for t in header.tensors
    }
    assert ours == theirs


def _library(content: bytes) -> list[tuple[str, Any]]:
    return [
        (name, {**found, "data": bytes(found["data"])})
        for name, found in safetensors.deserialize(content)
    ]
