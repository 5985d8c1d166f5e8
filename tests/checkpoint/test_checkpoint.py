"""Tensors of a checkpoint, the same however they are stored, read when they are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from making import (
    model_tensors,
    raw_safetensors,
    same_bits,
    write_index,
    write_model,
    write_pickle,
    write_sharded,
)
from safetensors.torch import save_file

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import ClmergeError, FormatError, InputError

TENSORS = model_tensors(0)
NAMES = list(TENSORS)


def stored(folder: Path, how: str) -> Path:
    """The same tensors as each program would leave them."""
    groups = [
        {name: TENSORS[name] for name in NAMES[:3]},
        {name: TENSORS[name] for name in NAMES[3:]},
    ]
    if how == "one file":
        return write_model(folder, TENSORS) / "model.safetensors"
    if how == "folder":
        return write_model(folder, TENSORS)
    if how == "shards":
        return write_sharded(folder, groups)
    if how == "bin shards":
        files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        for file, group in zip(files, groups, strict=True):
            write_pickle(folder / file, group)
        weight_map = {n: f for f, g in zip(files, groups, strict=True) for n in g}
        write_index(folder / "pytorch_model.bin.index.json", weight_map)
        return folder
    if how == "nested pt":
        return write_pickle(folder / "last.pt", {"epoch": 3, "model": dict(TENSORS)})
    return write_pickle(folder / "pytorch_model.bin", dict(TENSORS), legacy=how == "legacy bin")


WAYS = ["one file", "folder", "shards", "bin", "legacy bin", "bin shards", "nested pt"]


@pytest.mark.parametrize("how", WAYS)
def test_every_way_of_storing_gives_the_same_tensors(tmp_path: Path, how: str) -> None:
    with open_checkpoint(stored(tmp_path / "m", how)) as checkpoint:
        assert set(checkpoint.tensors) == set(TENSORS)
        assert checkpoint.nbytes == sum(t.nbytes for t in TENSORS.values())
        for name, tensor in TENSORS.items():
            info = checkpoint.tensors[name]
            assert (info.dtype, info.shape) == ("BF16", tuple(tensor.shape))
            assert same_bits(checkpoint.tensor(name), tensor)
            assert same_bits(checkpoint.read(name), tensor.reshape(-1))


@pytest.mark.parametrize("how", WAYS)
def test_a_part_of_a_tensor_is_that_part(tmp_path: Path, how: str) -> None:
    name = "model.embed_tokens.weight"
    with open_checkpoint(stored(tmp_path / "m", how)) as checkpoint:
        flat = TENSORS[name].reshape(-1)
        for start, stop in [(0, 1), (5, 77), (500, flat.numel()), (3, 3)]:
            assert same_bits(checkpoint.read(name, start, stop), flat[start:stop])
        checkpoint.release(name, 0, flat.numel())
        assert same_bits(checkpoint.read(name, 2), flat[2:])


@pytest.mark.parametrize(
    "dtype",
    [*safetensors.torch._TYPES.values()],  # every dtype torch and the library share
    ids=str,
)
def test_any_dtype_is_read_at_any_offset(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(1, 12).to(dtype)
    try:
        spelled = json.loads(safetensors.torch.save({"w": values})[8:].split(b"}}")[0] + b"}}")
    except ValueError:
        pytest.fail("the library wrote no JSON")
    data = values.view(torch.uint8).numpy().tobytes()
    read_back = 0
    for pad in range(9):  # header lengths of every residue: only some offsets are aligned
        path = tmp_path / f"{pad}.safetensors"
        path.write_bytes(raw_safetensors(spelled, data, pad=pad))
        with open_checkpoint(path) as checkpoint:
            if checkpoint.tensors["w"].dtype.endswith("FNUZ"):
                continue  # described by header only: such weights are never computed with
            assert same_bits(checkpoint.tensor("w"), values)
            assert same_bits(checkpoint.read("w", 3, 7), values[3:7])
            read_back += 1
    assert read_back in (0, 9)


def test_any_length_of_header_is_a_safetensors_file(tmp_path: Path) -> None:
    # A length whose lowest byte is 0x80, one in 32 padded headers, begins as a pickle does.
    first_bytes = set()
    for length in range(1, 160):
        path = tmp_path / "x.safetensors"
        save_file({"n" * length: torch.ones(2)}, path)
        first_bytes.add(path.read_bytes()[0])
        with open_checkpoint(path) as checkpoint:
            assert list(checkpoint.tensors) == ["n" * length]
    assert 0x80 in first_bytes


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    # 2^43 bytes of weights that were never written: any read of them all would not end.
    size = 2**43
    head = raw_safetensors({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    path = tmp_path / "large.safetensors"
    path.write_bytes(head)
    try:
        with path.open("r+b") as stream:
            stream.truncate(len(head) + size)
    except OSError:
        pytest.skip("this file system holds no file of 8 TiB")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.nbytes == size


def test_elements_are_a_view_of_the_file_not_a_copy(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {"w": torch.zeros(1000)})
    with open_checkpoint(folder) as checkpoint:
        one, other = checkpoint.read("w", 0, 10), checkpoint.read("w", 0, 10)
        assert one.data_ptr() == other.data_ptr()


def test_what_is_done_to_a_copy_does_not_reach_the_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {"w": torch.zeros(4)})
    with open_checkpoint(folder) as checkpoint:
        checkpoint.tensor("w").fill_(1)
        checkpoint.read("w").fill_(2)  # a private mapping: not even a view can change the file
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensor("w").tolist() == [0, 0, 0, 0]


def test_a_view_outlives_its_checkpoint(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {"w": torch.arange(4.0)})
    with open_checkpoint(folder) as checkpoint:
        view = checkpoint.read("w")
    assert view.tolist() == [0, 1, 2, 3]


def test_the_file_of_a_tensor_is_known(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", [{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.file_of("b") == folder / "model-00002-of-00002.safetensors"


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    groups = [{"a": torch.ones(1), "twin": torch.ones(1)}, {"twin": torch.ones(1)}]
    with pytest.raises(FormatError, match="two files") as caught:
        open_checkpoint(write_sharded(tmp_path / "m", groups))
    assert "twin" in (caught.value.detail or "")


def test_an_index_that_sends_a_tensor_to_the_wrong_file_is_refused(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", [{"a": torch.ones(1)}, {"b": torch.ones(1)}])
    swapped = {
        "a": "model-00002-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
    }
    write_index(folder / "model.safetensors.index.json", swapped)
    with pytest.raises(FormatError, match="does not hold"):
        open_checkpoint(folder)


def test_an_index_that_promises_a_tensor_nobody_holds_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {"a": torch.ones(1)})
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    index = folder / "model.safetensors.index.json"
    write_index(index, {"a": "x.safetensors", "ghost": "x.safetensors"})
    with pytest.raises(FormatError, match="does not hold") as caught:
        open_checkpoint(folder)
    assert "ghost" in (caught.value.detail or "")


def test_an_index_that_hides_a_tensor_of_its_files_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {"a": torch.ones(1), "hidden": torch.ones(1)})
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    write_index(folder / "model.safetensors.index.json", {"a": "x.safetensors"})
    with pytest.raises(FormatError, match="leaves out") as caught:
        open_checkpoint(folder)
    assert "hidden" in (caught.value.detail or "")


def test_the_config_is_read_where_there_is_one(tmp_path: Path) -> None:
    with open_checkpoint(write_model(tmp_path / "a", TENSORS, {"model_type": "llama"})) as one:
        assert one.config == {"model_type": "llama"}
    with open_checkpoint(write_model(tmp_path / "b", TENSORS)) as other:
        assert other.config is None


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"3", b"[" * 100_000])
def test_a_broken_config_is_refused(tmp_path: Path, text: bytes) -> None:
    folder = write_model(tmp_path / "m", TENSORS)
    (folder / "config.json").write_bytes(text)
    with pytest.raises(FormatError, match=r"config\.json"):
        open_checkpoint(folder)


def test_a_folder_in_the_place_of_a_weight_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", b"\x80", b"PK\x03\x04", b"PK\x03\x04" + bytes(99)])
@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pt", "x"])
def test_a_file_of_rubbish_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError):
        open_checkpoint(tmp_path / name)


def test_what_a_file_is_decides_not_what_it_is_called(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "x.bin")
    with open_checkpoint(tmp_path / "x.bin") as checkpoint:
        assert checkpoint.tensor("w").tolist() == [1, 1]


def test_asking_for_a_packed_dtype_is_refused_not_crashed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        raw_safetensors({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"x")
    )
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["w"].nbytes == 1
        with pytest.raises(ClmergeError):
            checkpoint.tensor("w")
