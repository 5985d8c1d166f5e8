"""Digests of whole checkpoints, whatever the threads, the sizes and the kind of file."""

from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from making import raw_safetensors, write_model, write_pickle, write_sharded
from safetensors import deserialize

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import InputError

PIECE = 16 * 2**20


def by_definition(content: bytes) -> str:
    """interface.md: blake3 of the blake3s of its 16 MiB pieces, one after another."""
    pieces = [content[at : at + PIECE] for at in range(0, len(content), PIECE)]
    return blake3(b"".join(blake3(piece).digest() for piece in pieces)).hexdigest()


def expected(path: Path) -> dict[str, str]:
    """The same from what the safetensors library reads, single-threaded."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {
        name: by_definition(bytes(entry["data"]))
        for file in files
        for name, entry in deserialize(file.read_bytes())
    }


def found(path: Path, threads: int | None = None) -> dict[str, str]:
    with open_checkpoint(path) as checkpoint:
        return checkpoint_digests(checkpoint, threads=threads)


def noise(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors around every boundary: of a piece, of a buffer, of nothing, in two shards."""
    sizes = [0, 1, 2**20 - 1, 2**20 + 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 12345]
    large = {f"large.{size}": noise(size, size) for size in sizes}
    small = {f"small.{k:03d}": noise(4096, 500 + k).view(torch.bfloat16) for k in range(300)}
    scalar = {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 7)}
    return write_sharded(tmp_path_factory.mktemp("varied") / "m", [large, {**small, **scalar}])


@pytest.mark.parametrize("threads", [1, 2, 7, None])
def test_every_digest_is_the_single_threaded_one(varied: Path, threads: int | None) -> None:
    digests = found(varied, threads)
    assert digests == expected(varied)
    assert len(set(digests.values())) == len(digests) - 1  # both empty ones are alike


@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_has_the_digests_of_its_tensors(tmp_path: Path, legacy: bool) -> None:
    tensors = {
        "long": noise(PIECE + 5, 1),
        "columns": noise(6000, 2).view(torch.int16).reshape(50, 60).t(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(3, 0),
    }
    path = write_pickle(tmp_path / "x.bin", {**tensors, "tied": tensors["long"]}, legacy=legacy)
    assert found(path) == {
        name: by_definition(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def test_packed_dtypes_at_odd_offsets_are_bytes_like_any_other(tmp_path: Path) -> None:
    header = {
        "half": {"dtype": "F4", "shape": [6], "data_offsets": [0, 3]},
        "wide": {"dtype": "F64", "shape": [1], "data_offsets": [3, 11]},
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors(header, bytes(range(11)), pad=1))
    data = bytes(range(11))
    assert found(path) == {"half": by_definition(data[:3]), "wide": by_definition(data[3:])}


def test_one_large_tensor_occupies_every_thread(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", {"w": torch.zeros(4 * PIECE, dtype=torch.uint8)})
    meet = threading.Barrier(4, timeout=60)  # broken unless four threads get there at once
    with open_checkpoint(path) as checkpoint:
        checkpoint_digests(checkpoint, threads=4, advance=lambda done: meet.wait() and None)


def test_progress_adds_up_to_the_bytes(varied: Path) -> None:
    told: list[int] = []
    with open_checkpoint(varied) as checkpoint:
        checkpoint_digests(checkpoint, threads=3, advance=told.append)
        assert sum(told) == checkpoint.nbytes
    assert max(told) <= PIECE
    assert len(told) < 20  # 300 small tensors are not 300 units of work


def hole(path: Path, size: int) -> Path:
    """A file of one tensor of zeros that takes no room on the disk."""
    head = raw_safetensors({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    path.write_bytes(head)
    os.truncate(path, len(head) + size)
    return path


def test_memory_is_one_buffer_per_thread_whatever_the_size(tmp_path: Path) -> None:
    path = hole(tmp_path / "hole.safetensors", 512 * 2**20)
    with open_checkpoint(path) as checkpoint:
        tracemalloc.start()
        checkpoint_digests(checkpoint, threads=4)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * 2**20 + 2**19


def test_a_file_that_shrinks_meanwhile_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", {"w": noise(3 * PIECE, 0)})
    with open_checkpoint(path) as checkpoint:
        os.truncate(path / "model.safetensors", 2 * PIECE)
        with pytest.raises(InputError, match="shorter") as caught:
            checkpoint_digests(checkpoint)
    assert "model.safetensors: w" in (caught.value.detail or "")


def test_a_file_that_goes_away_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", {"w": noise(10, 0)})
    with open_checkpoint(path) as checkpoint:
        (path / "model.safetensors").unlink()
        with pytest.raises(InputError, match="cannot be read") as caught:
            checkpoint_digests(checkpoint)
    assert "model.safetensors" in (caught.value.detail or "")


def test_an_error_in_one_thread_stops_the_others(tmp_path: Path) -> None:
    path = hole(tmp_path / "hole.safetensors", 64 * PIECE)
    meet = threading.Barrier(4, timeout=60)
    told: list[int] = []

    def advance(done: int) -> None:
        told.append(done)
        if meet.wait() == 0:
            raise KeyError
        threading.Event().wait(0.2)  # the one that fails has time to say so

    with open_checkpoint(path) as checkpoint, pytest.raises(KeyError):
        checkpoint_digests(checkpoint, threads=4, advance=advance)
    assert len(told) == 4
