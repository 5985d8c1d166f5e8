"""Digests: blake3 of blake3s, and of a checkpoint whatever its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blake3 import blake3
from making import model_tensors, write_model, write_pickle, write_sharded

from mergekit_cl.block import BLOCK
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.checkpoint.arrays import as_bytes, as_tensor, empty
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.digest import PIECE_BYTES, PieceHash, bytes_digest, tensor_digest, weights_digest
from mergekit_cl.digesting import checkpoint_digests

TENSORS = model_tensors(0)


def by_definition(data: bytes) -> str:
    """interface.md: blake3 of the blake3s of its 16 MiB pieces."""
    pieces = [data[i : i + 2**24] for i in range(0, len(data), 2**24)]
    return blake3(b"".join(blake3(piece).digest() for piece in pieces)).hexdigest()


def in_blocks(tensor: torch.Tensor) -> str:
    hashed = PieceHash()
    for start in range(0, tensor.numel(), BLOCK):
        hashed.update(as_bytes(tensor[start : start + BLOCK]))
    return tensor_digest(hashed.pieces())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_tensors_digest_is_that_of_its_pieces(dtype: torch.dtype, beyond: int) -> None:
    assert PIECE_BYTES == 2**24
    size = 2**24 // torch.empty((), dtype=dtype).element_size() + beyond
    tensor = torch.arange(size, dtype=torch.int64).to(dtype)
    assert in_blocks(tensor) == by_definition(bytes(as_bytes(tensor)))


@pytest.mark.parametrize("size", [0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1])
def test_small_tensors_are_one_piece(size: int) -> None:
    tensor = torch.arange(size).to(torch.bfloat16)
    assert in_blocks(tensor) == by_definition(bytes(as_bytes(tensor)))


def test_the_bytes_of_a_view_are_those_it_shows() -> None:
    every_second = torch.arange(8, dtype=torch.uint8)[::2]
    assert bytes(as_bytes(every_second)) == bytes([0, 2, 4, 6])
    assert bytes(as_bytes(torch.tensor([True, False]))) == bytes([1, 0])


def of_checkpoint(path: Path) -> str:
    with open_checkpoint(path) as checkpoint:
        digests = checkpoint_digests(checkpoint)
        return weights_digest(
            (t.name, t.dtype, t.shape, digests[t.name]) for t in checkpoint.tensors.values()
        )


def test_neither_files_nor_format_nor_order_enter_a_weights_digest(tmp_path: Path) -> None:
    names = list(TENSORS)
    backwards = {name: TENSORS[name] for name in reversed(names)}
    groups = [{n: TENSORS[n] for n in names[:2]}, {n: TENSORS[n] for n in names[2:]}]
    tied = {**TENSORS, "tied.weight": TENSORS["lm_head.weight"]}
    found = {
        of_checkpoint(write_model(tmp_path / "one", TENSORS)),
        of_checkpoint(write_sharded(tmp_path / "shards", groups)),
        of_checkpoint(write_pickle(tmp_path / "a.bin", dict(TENSORS))),
        of_checkpoint(write_pickle(tmp_path / "b.bin", backwards)),
        of_checkpoint(write_pickle(tmp_path / "c.pt", {"model": dict(TENSORS)}, legacy=True)),
        of_checkpoint(write_pickle(tmp_path / "d.bin", tied)),  # one canonical name per tied group
    }
    assert len(found) == 1


def test_name_dtype_shape_and_bits_enter_a_weights_digest(tmp_path: Path) -> None:
    zero = torch.zeros(2, 3)
    variants = [
        {"w": zero},
        {"v": zero},
        {"w": zero.reshape(3, 2)},
        {"w": zero.to(torch.int32)},  # the same bytes
        {"w": -zero},
        {"w": zero, "v": zero.clone()},
    ]
    found = {
        of_checkpoint(write_model(tmp_path / str(i), tensors)) for i, tensors in enumerate(variants)
    }
    assert len(found) == len(variants)


def test_a_weights_digest_is_blake3_over_sorted_json_lines() -> None:
    lines = ['["a","F32",[2,3],"d1"]', '["b","BF16",[],"d2"]']
    found = weights_digest([("b", "BF16", (), "d2"), ("a", "F32", (2, 3), "d1")])
    assert found == blake3("\n".join(lines).encode()).hexdigest()


def test_a_small_digest_is_plain_blake3() -> None:
    assert bytes_digest(b"abc") == blake3(b"abc").hexdigest()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "I64", "BOOL", "F8_E4M3"])
def test_an_empty_array_is_an_empty_tensor_of_no_bytes(dtype: str) -> None:
    tensor = as_tensor(empty(dtype, 0), dtype)
    assert tensor.dtype == torch_dtype(dtype)
    assert bytes(as_bytes(tensor)) == b""
