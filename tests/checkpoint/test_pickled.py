"""Torch files: only weights come out of them, tied ones once, and code never runs."""

from __future__ import annotations

import random
import re
import signal
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from making import same_bits, write_index, write_pickle

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import ClmergeError, FormatError, InputError

pytestmark = pytest.mark.filterwarnings(
    "ignore:TypedStorage is deprecated",  # torch's own reading of its older format
    "ignore:.*quantized tensor creation functions",
    "ignore:Sparse CSR tensor support is in beta",
)
LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Trap:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail instead of hanging."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@LEGACY
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, legacy: bool) -> None:
    trace = tmp_path / "trace"
    path = write_pickle(
        tmp_path / "x.bin", {"w": torch.ones(2), "evil": Trap(trace)}, legacy=legacy
    )
    with pytest.raises(FormatError, match="only weights"):
        open_checkpoint(path)
    assert not trace.exists()


@LEGACY
def test_tied_tensors_are_one_with_another_name(tmp_path: Path, legacy: bool) -> None:
    embedding = torch.randn(5, 3)
    content = {"embed.weight": embedding, "bias": torch.ones(5), "head.weight": embedding}
    with open_checkpoint(write_pickle(tmp_path / "x.bin", content, legacy=legacy)) as checkpoint:
        assert list(checkpoint.tensors) == ["embed.weight", "bias"]
        assert checkpoint.aliases == {"head.weight": "embed.weight"}
        assert checkpoint.nbytes == (15 + 5) * 4


@LEGACY
def test_parts_of_one_storage_are_different_tensors(tmp_path: Path, legacy: bool) -> None:
    whole = torch.arange(12.0)
    content = {
        "whole": whole,
        "first": whole[:6],
        "second": whole[6:],
        "square": whole[:9].view(3, 3),
        "turned": whole[:9].view(3, 3).T,
    }
    with open_checkpoint(write_pickle(tmp_path / "x.bin", content, legacy=legacy)) as checkpoint:
        assert checkpoint.aliases == {}
        for name, tensor in content.items():
            assert same_bits(checkpoint.tensor(name), tensor.contiguous())
        assert checkpoint.read("turned", 1, 4).tolist() == [3, 6, 1]


def test_a_single_element_of_a_longer_storage_is_bytes_like_any_other(tmp_path: Path) -> None:
    content = {"w": torch.arange(12.0).view(2, 6).t()[:1, :1].reshape(-1), "v": torch.ones(8)[::4]}
    assert content["w"].stride() != (1,)
    with open_checkpoint(write_pickle(tmp_path / "x.bin", content)) as checkpoint:
        for name, tensor in content.items():
            read = checkpoint.read(name)
            assert read.view(torch.uint8).numel() == 4 * tensor.numel()
            assert torch.equal(read, tensor)


def test_a_turned_tensor_is_copied_once_and_not_for_every_block(tmp_path: Path) -> None:
    content = {"w": torch.randn(30, 40).t(), "v": torch.randn(3, 4).t()}
    with open_checkpoint(write_pickle(tmp_path / "x.bin", content)) as checkpoint:
        parts = [checkpoint.read("w", k, k + 100) for k in range(0, 1200, 100)]
        assert torch.equal(torch.cat(parts), content["w"].reshape(-1))
        assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
        assert torch.equal(checkpoint.read("v"), content["v"].reshape(-1))
        assert torch.equal(checkpoint.read("w"), content["w"].reshape(-1))


def test_empty_tensors_are_not_tied_by_their_lack_of_memory(tmp_path: Path) -> None:
    content = {"a": torch.empty(0), "b": torch.empty(0)}
    with open_checkpoint(write_pickle(tmp_path / "x.bin", content)) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]


def test_parameters_are_read_as_tensors(tmp_path: Path) -> None:
    content = OrderedDict(w=torch.nn.Parameter(torch.ones(2)))
    with open_checkpoint(write_pickle(tmp_path / "x.bin", content)) as checkpoint:
        tensor = checkpoint.tensor("w")
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"w": torch.ones(1)}, "epoch": 3, "optimizer": {"state": {}}},
        {"model": {"w": torch.ones(1)}, "args": {"lr": 0.1}},
        {"model": {"state_dict": {"w": torch.ones(1)}, "name": "x"}},
        {"module": {"w": torch.ones(1)}, "step": torch.tensor(1)},
        {"model_state_dict": {"w": torch.ones(1)}, "loss": 0.3},
    ],
    ids=["lightning", "fairseq", "twice", "deepspeed", "hand-written"],
)
def test_the_state_dict_is_found_where_training_scripts_put_it(
    tmp_path: Path, content: object
) -> None:
    with open_checkpoint(write_pickle(tmp_path / "x.pt", content)) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        torch.ones(2),
        {"epoch": 3},
        {"w": torch.ones(1), "step": 3},
        {"w": [torch.ones(1)]},
        {"model": {"epoch": 3}},
        3,
        None,
    ],
    ids=str,
)
def test_what_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(InputError):
        open_checkpoint(write_pickle(tmp_path / "x.pt", content))


def test_a_container_that_holds_itself_is_refused_in_finite_time(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    with at_most(3), pytest.raises(InputError):
        open_checkpoint(write_pickle(tmp_path / "x.pt", content))


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        open_checkpoint(write_pickle(tmp_path / "x.pt", {3: torch.ones(1)}))


def test_tensors_that_are_not_plain_numbers_are_refused(tmp_path: Path) -> None:
    refused = {
        "sparse": torch.eye(3).to_sparse(),
        "compressed": torch.eye(3).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "complex": torch.ones(2, dtype=torch.complex128),
        "nowhere": torch.empty(2, device="meta"),
    }
    for name, tensor in refused.items():
        path = write_pickle(tmp_path / f"{name}.bin", {"w": tensor})
        with pytest.raises(InputError) as caught:
            open_checkpoint(path)
        assert "w" in (caught.value.detail or ""), name


def test_a_tensor_in_two_files_is_refused_where_one_has_it_tied(tmp_path: Path) -> None:
    shared = torch.ones(3)
    write_pickle(tmp_path / "one.bin", {"embed": shared, "head": shared})
    write_pickle(tmp_path / "two.bin", {"head": torch.zeros(3), "norm": torch.ones(1)})
    weight_map = {"embed": "one.bin", "head": "one.bin", "norm": "two.bin"}
    write_index(tmp_path / "pytorch_model.bin.index.json", weight_map)
    with pytest.raises(FormatError):
        open_checkpoint(tmp_path)


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """An archive with its records changed."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return path


@pytest.mark.parametrize("size", [0, 8, 11, 13, 40])
def test_a_record_of_another_size_than_its_tensor_is_refused(tmp_path: Path, size: int) -> None:
    # Mapped, the tensor would run on into the next record.
    path = write_pickle(tmp_path / "x.bin", {"w": torch.ones(3), "v": torch.zeros(3)})

    def change(records: dict[str, bytes]) -> None:
        records.update({n: bytes(size) for n in records if n.endswith("data/0")})

    with pytest.raises(FormatError):
        open_checkpoint(rewritten(path, change))


def test_an_archive_rewritten_by_another_program_is_read(tmp_path: Path) -> None:
    content = {"w": torch.arange(3.0), "v": torch.ones(2, 2).half(), "tied": torch.arange(3.0)}
    content["tied"] = content["w"]
    path = rewritten(write_pickle(tmp_path / "x.bin", content), lambda records: None)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.aliases == {"tied": "w"}
        assert same_bits(checkpoint.tensor("w"), content["w"])
        assert same_bits(checkpoint.tensor("v"), content["v"])


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "x.bin", {"w": torch.zeros(1000)})
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    with pytest.raises(FormatError):
        open_checkpoint(path)


def test_a_legacy_storage_of_more_elements_than_bytes_is_refused_before_it_is_made(
    tmp_path: Path,
) -> None:
    path = write_pickle(tmp_path / "x.bin", {"w": torch.ones(70_000)}, legacy=True)
    whole = path.read_bytes()
    count = (70_000).to_bytes(4, "little")
    assert b"J" + count in whole
    path.write_bytes(whole.replace(b"J" + count, b"J" + (2**31 - 1).to_bytes(4, "little"), 1))
    with pytest.raises(FormatError, match="truncated") as caught:
        open_checkpoint(path)
    assert "2147483647" in (caught.value.detail or "")


def test_a_legacy_storage_whose_bytes_are_missing_is_refused(tmp_path: Path) -> None:
    # Its loader would hand out whatever lies in memory.
    path = write_pickle(tmp_path / "x.bin", {"w": torch.ones(3), "v": torch.zeros(3)}, legacy=True)
    whole = path.read_bytes()
    end = whole.rindex(b".", 0, whole.rindex(b"e.") + 2)
    key = re.findall(rb"X(....)(\d{9,})", whole[:end], re.DOTALL)[0][1]
    at = whole.index(key)
    other = bytes([*key[:-1], ord("0") + (key[-1] - ord("0") + 1) % 10])
    path.write_bytes(whole[:at] + other + whole[at + len(key) :])
    with pytest.raises(FormatError):
        open_checkpoint(path)


@LEGACY
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, legacy: bool) -> None:
    whole = write_pickle(tmp_path / "x.bin", {"w": torch.randn(40)}, legacy=legacy).read_bytes()
    for length in range(0, len(whole) - 1, 37):
        (tmp_path / "cut.bin").write_bytes(whole[:length])
        with pytest.raises(FormatError):
            open_checkpoint(tmp_path / "cut.bin")


@LEGACY
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, legacy: bool) -> None:
    content = {"w": torch.randn(5), "model": torch.ones(2)}
    whole = write_pickle(tmp_path / "x.bin", content, legacy=legacy).read_bytes()
    draw = random.Random(7)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        (tmp_path / "damaged.bin").write_bytes(damaged)
        try:
            with open_checkpoint(tmp_path / "damaged.bin") as checkpoint:
                for name, info in checkpoint.tensors.items():
                    assert checkpoint.read(name).numel() == info.numel
        except ClmergeError:
            continue
