"""Inputs that change while they are read or between two runs: never a mixture of both."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from making import files_below, linear, merge, model_tensors, silent, weight_bytes, write_model

from mergekit_cl.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from mergekit_cl.checkpoint.positioned import PositionedFile
from mergekit_cl.errors import InputError, Interrupted, OutputError

pytestmark = pytest.mark.usefixtures("a_span_for_each_tensor")
LIMIT = 900
CHANGED = "model.embed_tokens.weight"


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return [write_model(tmp_path / name, model_tensors(k)) for k, name in enumerate("ab")]


def rewrite(model: Path, *, keep_time: bool) -> None:
    """Other bytes in one tensor, in the same place and of the same size."""
    file = model / "model.safetensors"
    with open_checkpoint(model) as opened:
        offset = opened.tensors[CHANGED].offset
    times = file.stat()
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x11\x3f" * 8)
    if keep_time:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(model: Path) -> None:
    """A copy with other bytes, the old size and the old time takes the file's place."""
    file = model / "model.safetensors"
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-2:] = b"\x11\x3f"
    fresh = file.with_suffix(".new")
    fresh.write_bytes(content)
    os.utime(fresh, ns=(times.st_atime_ns, times.st_mtime_ns))
    fresh.replace(file)


CHANGES: dict[str, Callable[[Path], None]] = {
    "written": lambda model: rewrite(model, keep_time=False),
    "written, its time restored": lambda model: rewrite(model, keep_time=True),
    "replaced, its time restored": replace,
    "removed": lambda model: (model / "model.safetensors").unlink(),
    "longer": lambda model: os.truncate(model / "model.safetensors", 10**5),
}


def after_spans(count: int, act: Callable[[], None]) -> Callable[[str, int], Callable[[int], None]]:
    """Progress that acts once, when it is told of so many spans."""
    left = [count]

    def advance(done: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            act()

    return lambda title, total: advance


def interrupt() -> None:
    raise Interrupted(signal.SIGINT)


def spans_until_changed(inputs: list[Path], tmp_path: Path) -> int:
    """After how many spans the tensor that is to change has been read."""
    order: list[str] = []
    real = Checkpoint.block

    def block(self: Checkpoint, tensor: TensorInfo, *where: int) -> Any:
        order.append(tensor.name)
        return real(self, tensor, *where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "block", block)
        merge(linear(inputs), tmp_path / "probe", shard_size=LIMIT, threads=1)
    shutil.rmtree(tmp_path / "probe")
    return list(dict.fromkeys(order)).index(CHANGED) + 1


def test_a_change_that_hides_itself_is_refused_once_the_old_bytes_were_read(
    inputs: list[Path], tmp_path: Path
) -> None:
    read = spans_until_changed(inputs, tmp_path)
    for spans in range(1, len(model_tensors(0)) + 1):
        # One of two values: each time other bytes than before.
        write_model(inputs[1], model_tensors(1))
        acting = after_spans(spans, lambda: rewrite(inputs[1], keep_time=True))
        target = tmp_path / f"out{spans}"
        if spans >= read:
            with pytest.raises(InputError, match="an input changed while it was read"):
                merge(linear(inputs), target, acting, shard_size=LIMIT, threads=1)
            assert not target.exists()
        else:  # what was read is what is there now
            merge(linear(inputs), target, acting, shard_size=LIMIT, threads=1)
            merge(linear(inputs), tmp_path / f"now{spans}", shard_size=LIMIT)
            assert weight_bytes(target) == weight_bytes(tmp_path / f"now{spans}")


@pytest.mark.parametrize("spans", [1, 3, 7], ids=["early", "midway", "at the end"])
@pytest.mark.parametrize("change", sorted(CHANGES.keys() - {"written, its time restored"}))
def test_an_input_that_changes_during_the_run_is_refused_and_leaves_nothing(
    inputs: list[Path], tmp_path: Path, change: str, spans: int
) -> None:
    acting = after_spans(spans, lambda: CHANGES[change](inputs[1]))
    with pytest.raises(InputError, match="an input changed while it was read") as caught:
        merge(linear(inputs), tmp_path / "new/out", acting, shard_size=LIMIT, threads=1)
    assert "model.safetensors" in str(caught.value.detail) or "/b" in str(caught.value.detail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_link_or_other_permissions_are_no_change(inputs: list[Path], tmp_path: Path) -> None:
    file = inputs[1] / "model.safetensors"

    def touch() -> None:
        os.link(file, tmp_path / "link")
        file.chmod(0o600)

    before = file.stat().st_ctime_ns
    merge(linear(inputs), tmp_path / "out", after_spans(2, touch), threads=1)
    assert file.stat().st_ctime_ns != before
    merge(linear(inputs), tmp_path / "other")
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "other")


@pytest.mark.parametrize("change", ["written, its time restored", "replaced, its time restored"])
def test_files_made_of_what_an_input_was_before_it_hid_a_change_are_made_again(
    inputs: list[Path], tmp_path: Path, change: str
) -> None:
    for stop in range(2, 8):
        target = tmp_path / f"out{stop}"
        with pytest.raises(Interrupted):
            merge(linear(inputs), target, after_spans(stop, interrupt), shard_size=LIMIT, threads=1)
        CHANGES[change](inputs[stop % 2])
        merge(linear(inputs), target, shard_size=LIMIT)
        merge(linear(inputs), tmp_path / f"whole{stop}", shard_size=LIMIT)
        assert weight_bytes(target) == weight_bytes(tmp_path / f"whole{stop}")


def test_files_made_of_an_input_that_was_only_linked_since_are_kept(
    inputs: list[Path], tmp_path: Path
) -> None:
    acting = after_spans(6, interrupt)
    with pytest.raises(Interrupted):
        merge(linear(inputs), tmp_path / "out", acting, shard_size=LIMIT, threads=1)
    os.link(inputs[0] / "model.safetensors", tmp_path / "link")
    told: list[int] = []
    merge(linear(inputs), tmp_path / "out", lambda *_: told.append, shard_size=LIMIT)
    assert len(told) < len(model_tensors(0))


def test_a_change_that_shows_between_two_runs_is_another_command(
    inputs: list[Path], tmp_path: Path
) -> None:
    acting = after_spans(6, interrupt)
    with pytest.raises(Interrupted):
        merge(linear(inputs), tmp_path / "out", acting, shard_size=LIMIT, threads=1)
    rewrite(inputs[1], keep_time=False)
    kept = files_below(tmp_path / ".out.partial")
    with pytest.raises(OutputError, match="another command"):
        merge(linear(inputs), tmp_path / "out", shard_size=LIMIT)
    assert files_below(tmp_path / ".out.partial") == kept


def test_a_change_between_opening_and_reading_is_noticed(
    inputs: list[Path], tmp_path: Path
) -> None:
    method = linear(inputs)
    rewrite(inputs[1], keep_time=False)
    with pytest.raises(InputError, match="an input changed"):
        merge(method, tmp_path / "out", silent)


def test_a_file_cut_short_is_an_error_of_the_input(inputs: list[Path], tmp_path: Path) -> None:
    file = inputs[1] / "model.safetensors"
    acting = after_spans(1, lambda: os.truncate(file, 3000))
    with pytest.raises(InputError, match=r"shorter|changed while"):
        merge(linear(inputs), tmp_path / "out", acting, threads=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("size", [0, 100, 2**20])
@pytest.mark.parametrize("number", [1, 2, 9])
def test_a_file_cut_short_between_two_of_its_blocks_is_one_error_and_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, number: int
) -> None:
    inputs = [write_model(tmp_path / name, {"w": torch.ones(2**20)}) for name in "ab"]
    file = inputs[1] / "model.safetensors"
    real, blocks = PositionedFile.block, []

    def block(self: PositionedFile, tensor: TensorInfo, start: int, stop: int) -> Any:
        found = real(self, tensor, start, stop)
        blocks.append(found)  # still in use when the file is cut
        if len(blocks) == number:
            os.truncate(file, size)
        return found

    monkeypatch.setattr(PositionedFile, "block", block)
    with pytest.raises(InputError, match=r"shorter|changed while"):
        merge(linear(inputs), tmp_path / "out", silent, threads=2)
    assert all((found == 1).all() for found in blocks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
