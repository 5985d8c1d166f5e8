"""A header we write equals the safetensors library's; a header it wrote is read as it meant."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mergekit_cl.checkpoint.header import Header, read_header, serialize

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
# Any text UTF-8 can hold: quotes, control characters, emoji; lone surrogates are not text.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda name: name != "__metadata__"
)


def read(content: bytes) -> Header:
    return read_header(io.BytesIO(content), len(content), "x.safetensors")


def written(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None) -> bytes:
    """What this project writes for tensors: the header, then their bytes at its offsets."""
    spelled = {dtype: short for short, dtype in TORCH_DTYPES.items()}
    header = serialize(
        [(name, spelled[t.dtype], tuple(t.shape)) for name, t in tensors.items()], metadata or {}
    )
    content = bytearray(header.file_bytes)
    content[: len(header.raw)] = header.raw
    for info in header.tensors:
        data = tensors[info.name].reshape(-1).view(torch.uint8).numpy().tobytes()
        content[info.offset : info.offset + info.nbytes] = data
    return bytes(content)


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2, shape, generator=generator)
    return values.to(dtype)


@pytest.mark.parametrize("short", TORCH_DTYPES)
def test_a_file_of_one_dtype_equals_the_librarys(short: str) -> None:
    tensors = {
        f"layer.{i}.weight": filled(TORCH_DTYPES[short], shape, i)
        for i, shape in enumerate([(3, 5), (), (7,), (0, 2), (2, 1, 3)])
    }
    assert written(tensors, {"format": "pt"}) == save(tensors, metadata={"format": "pt"})


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(NAMES, st.tuples(st.sampled_from(list(TORCH_DTYPES.values())), SHAPES)),
    st.none() | st.tuples(NAMES, NAMES),
)
def test_a_file_equals_the_librarys_for_any_names_dtypes_and_shapes(
    described: dict[str, tuple[torch.dtype, tuple[int, ...]]], pair: tuple[str, str] | None
) -> None:
    # One metadata entry at most: the library writes several in the random order of a hash map.
    metadata = None if pair is None else dict([pair])
    tensors = {
        name: filled(dtype, shape, i) for i, (name, (dtype, shape)) in enumerate(described.items())
    }
    assert written(tensors, metadata) == save(tensors, metadata=metadata)


def test_the_order_of_dtypes_is_the_librarys_for_every_one_torch_has() -> None:
    rarer = {
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "F8_E8M0": torch.float8_e8m0fnu,
    }
    dtypes = {**TORCH_DTYPES, **rarer}
    theirs = save({short: torch.zeros(4).to(dtype) for short, dtype in dtypes.items()})
    ours = serialize([(short, short, (4,)) for short in dtypes], {})
    assert theirs[: len(ours.raw)] == ours.raw
    assert read(theirs).tensors == ours.tensors


def test_equal_metadata_gives_equal_bytes_in_whatever_order_it_is_given() -> None:
    tensors = [("w", "F32", (2,))]
    one = serialize(tensors, {"format": "pt", "a": "1", "z": "2"})
    other = serialize(tensors, {"z": "2", "a": "1", "format": "pt"})
    assert one.raw == other.raw


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(NAMES, st.tuples(st.sampled_from(list(TORCH_DTYPES.values())), SHAPES)),
    st.dictionaries(NAMES, NAMES, max_size=3),
)
def test_the_librarys_files_are_read_as_it_wrote_them(
    described: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    tensors = {
        name: filled(dtype, shape, i) for i, (name, (dtype, shape)) in enumerate(described.items())
    }
    # None: without tensors the library writes empty metadata as broken JSON.
    content = save(tensors, metadata=metadata or None)
    header = read(content)
    assert dict(header.metadata) == metadata
    assert header.file_bytes == len(content)
    assert content.startswith(header.raw)
    assert {t.name for t in header.tensors} == set(tensors)
    for info in header.tensors:
        tensor = tensors[info.name]
        assert TORCH_DTYPES[info.dtype] == tensor.dtype
        assert info.shape == tuple(tensor.shape)
        assert info.numel == tensor.numel()
        assert info.is_float == (info.dtype in ("F16", "BF16", "F32", "F64"))
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert content[info.offset : info.offset + info.nbytes] == data


def test_tensors_come_in_the_order_of_their_bytes() -> None:
    content = save({"b": torch.ones(2), "a": torch.ones(2), "c": torch.ones(2).double()})
    assert [t.name for t in read(content).tensors] == ["c", "a", "b"]


def test_a_header_that_no_writer_padded_is_read_at_odd_offsets() -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for name in ("a", "ab", "abc", "abcd"):
        text = json.dumps({name: entry}).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(8)
        assert read(content).tensors[0].offset == 8 + len(text)
