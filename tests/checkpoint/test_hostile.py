"""Hostile files end in an error of ours or a correct read; `tests/fuzz_headers.py` runs more."""

from __future__ import annotations

import os
import random
import socket
import time
from pathlib import Path

import pytest
import torch
from fuzz_headers import Cases
from hostile import Violation, Watch, at_most, examine, memory_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import raw_safetensors, write_index, write_model, write_pickle

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import FormatError, InputError

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, about what a damaged pickle asks for


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory.mktemp("hostile"))


@settings(deadline=None, max_examples=1000, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_any_damage_is_refused_or_read_right(
    cases: Cases, watch: Watch, draw: random.Random
) -> None:
    _, path, is_right = cases.make(draw)
    found = examine(path, cases.folder, watch)
    assert found is None or is_right(found)


def test_undamaged_files_are_read(tmp_path: Path, cases: Cases, watch: Watch) -> None:
    for content in (*cases.single, *cases.torch):
        (tmp_path / "x").write_bytes(content)
        assert examine(tmp_path / "x", tmp_path, watch) is not None


def test_an_index_cannot_reach_a_checkpoint_outside(cases: Cases, watch: Watch) -> None:
    cases.make(random.Random(1))
    write_index(cases.folder / "model.safetensors.index.json", {"w": "../secret/model.safetensors"})
    assert examine(cases.folder, cases.folder, watch) is None


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, watch: Watch) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert examine(tmp_path, tmp_path, watch) is None
    assert examine(tmp_path / "model.safetensors", tmp_path, watch) is None
    (tmp_path / "model.safetensors").unlink()
    write_model(tmp_path, {"w": torch.ones(1)})
    os.mkfifo(tmp_path / "config.json")
    assert examine(tmp_path, tmp_path, watch) is not None


def test_a_tensor_repeated_without_end_is_refused(tmp_path: Path, watch: Watch) -> None:
    endless = torch.ones(1).expand(2**20, 2**20)  # one element in the file
    path = write_pickle(tmp_path / "x.bin", {"w": endless})
    assert examine(path, tmp_path, watch) is None


def test_many_tensors_of_no_bytes_cost_what_their_header_does(tmp_path: Path, watch: Watch) -> None:
    entries = {f"{k}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for k in range(50_000)}
    (tmp_path / "x.safetensors").write_bytes(raw_safetensors(entries))
    with at_most(5), open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert len(checkpoint.tensors) == 50_000


def test_a_header_of_its_largest_size_is_refused_in_little_time(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes((50 * 10**6).to_bytes(8, "little") + b"[" * 50 * 10**6)
    with at_most(10), pytest.raises(FormatError):
        open_checkpoint(tmp_path / "x.safetensors")


class TestTheWatch:
    """What sees nothing proves nothing."""

    def test_it_sees_a_file_outside(self, tmp_path: Path, watch: Watch) -> None:
        (tmp_path / "inside").mkdir()
        (tmp_path / "outside").write_bytes(b"x")
        (tmp_path / "inside/link").symlink_to(tmp_path / "outside")
        for name in ("outside", "inside/../outside", "inside/link"):
            with pytest.raises(Violation, match="outside"), watch.over(tmp_path / "inside"):
                (tmp_path / name).read_bytes()
        with pytest.raises(Violation), watch.over(tmp_path):
            (tmp_path / "new").write_bytes(b"x")

    def test_it_sees_a_process_and_a_connection(self, tmp_path: Path, watch: Watch) -> None:
        with pytest.raises(Violation), watch.over(tmp_path):
            os.system("true")
        with pytest.raises(Violation), watch.over(tmp_path), socket.socket() as made:
            made.connect_ex(("127.0.0.1", 9))

    def test_it_sees_time_and_memory(self, tmp_path: Path) -> None:
        with pytest.raises(Violation), at_most(0.05):
            time.sleep(1)
        with pytest.raises(MemoryError), memory_of(2**24):
            bytearray(2**30)

    def test_it_sees_other_exceptions(
        self, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(path: Path) -> None:
            raise KeyError("x")

        monkeypatch.setattr("hostile.open_checkpoint", fails)
        with pytest.raises(Violation, match="KeyError"):
            examine(tmp_path, tmp_path, watch)

    def test_it_sees_an_allocation_that_failed(
        self, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(path: Path) -> None:
            try:
                bytearray(2**40)
            except MemoryError as error:
                raise InputError("too large") from error

        monkeypatch.setattr("hostile.open_checkpoint", fails)
        with pytest.raises(Violation, match="allocate"):
            examine(tmp_path, tmp_path, watch)
