"""Reading by position: equal to the file, an error where a mapping would be a signal."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from making import (
    linear,
    merge,
    model_tensors,
    raw_safetensors,
    same_bits,
    weight_bytes,
    write_model,
)

from mergekit_cl.checkpoint import open_checkpoint, readers
from mergekit_cl.checkpoint.mapped import MappedFile
from mergekit_cl.checkpoint.positioned import PositionedFile
from mergekit_cl.errors import InputError


@pytest.fixture
def on_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path lies on a network file system."""
    monkeypatch.setattr(readers, "is_on_network", lambda path: True)


def reader_of(path: Path) -> type:
    return type(readers.open_local(path).reader)


def test_a_local_aligned_file_is_mapped(tmp_path: Path) -> None:
    assert reader_of(write_model(tmp_path, model_tensors(1)) / "model.safetensors") is MappedFile


def test_a_file_that_nobody_closed_is_closed_when_nobody_has_it(tmp_path: Path) -> None:
    write_model(tmp_path, model_tensors(1))

    def is_open() -> bool:
        held = Path("/proc/self/fd").iterdir()
        return any(one.is_symlink() and one.readlink().parent == tmp_path for one in held)

    checkpoint = open_checkpoint(tmp_path)
    info = next(iter(checkpoint.tensors.values()))
    checkpoint.block(info, 0, info.numel)
    assert is_open()
    del checkpoint
    gc.collect()
    assert not is_open()


def test_a_file_on_a_network_is_read_by_position(tmp_path: Path, on_network: None) -> None:
    path = write_model(tmp_path, model_tensors(1)) / "model.safetensors"
    assert reader_of(path) is PositionedFile
    with open_checkpoint(tmp_path) as checkpoint:
        for name, tensor in model_tensors(1).items():
            assert same_bits(checkpoint.tensor(name), tensor)


def test_a_file_with_a_misaligned_tensor_is_read_by_position(tmp_path: Path) -> None:
    entries = {
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    data = b"\1\2\3" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors(entries, data))
    assert reader_of(path) is PositionedFile
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("w").tolist() == [1.5, -2.0]
        assert checkpoint.read("w", 1).tolist() == [-2.0]
        assert checkpoint.read("odd").tolist() == [1, 2, 3]


def test_a_merge_of_network_files_gives_the_bytes_of_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [write_model(tmp_path / str(k), model_tensors(k)) for k in range(2)]
    merge(linear(inputs), tmp_path / "local")
    monkeypatch.setattr(readers, "is_on_network", lambda path: True)
    merge(linear(inputs), tmp_path / "network")
    assert weight_bytes(tmp_path / "network") == weight_bytes(tmp_path / "local")


def test_a_file_that_shrinks_is_an_error_and_no_signal(tmp_path: Path, on_network: None) -> None:
    path = write_model(tmp_path, {"w": torch.ones(1000)}) / "model.safetensors"
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as stream:
            stream.truncate(500)
        with pytest.raises(InputError, match="shorter"):
            checkpoint.read("w")


def test_a_file_that_goes_away_before_it_is_read_is_an_error(
    tmp_path: Path, on_network: None
) -> None:
    path = write_model(tmp_path, {"w": torch.ones(10)}) / "model.safetensors"
    with open_checkpoint(path) as checkpoint:
        path.unlink()
        with pytest.raises(InputError, match="cannot be read"):
            checkpoint.read("w")


def test_a_closed_file_is_closed_and_opens_again(tmp_path: Path, on_network: None) -> None:
    path = write_model(tmp_path, {"w": torch.ones(10)}) / "model.safetensors"
    reader = PositionedFile(path)
    tensor = open_checkpoint(path).tensors["w"]
    assert reader.read(tensor, 0, 10).sum() == 10
    reader.close()
    assert reader.read(tensor, 2, 4).tolist() == [1, 1]
    reader.close()
