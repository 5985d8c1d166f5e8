"""Outputs that may not be written: refused, and everything that is there stays as it is."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.checkpoints import weights
from tests.commands.running import clmerge, failure_lines, refused
from tests.commands.trees import snapshot

MERGES = ["linear-merge", "fisher-merge"]
OVERWRITES = ("the output would overwrite an input", "choose an output outside the inputs")


def average(*seeds: int) -> dict[str, torch.Tensor]:
    """The mean of the checkpoints of these seeds, in float64 rounded once."""
    inputs = [weights(seed) for seed in seeds]
    return {
        name: (sum(x[name].double() for x in inputs) / len(inputs)).float() for name in inputs[0]
    }


@pytest.mark.parametrize("command", MERGES)
@pytest.mark.parametrize(
    "output",
    [
        "a",
        "b/",
        "./a",
        "a/merged",
        "b/clmerge",
        "a/model.safetensors",
        "a/x.safetensors",
        ".",
        "..",
    ],
)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_output_that_is_or_touches_an_input_is_refused(
    place: Path, command: str, output: str, force: list[str]
) -> None:
    refused(command, "a", "b", "-o", output, *force, unchanged=place, says=OVERWRITES)


def test_an_input_is_recognised_behind_a_link(place: Path) -> None:
    (place / "link").symlink_to("b", target_is_directory=True)
    refused("linear-merge", "a", "b", "-o", "link", unchanged=place, says=OVERWRITES)
    refused("linear-merge", "a", "link", "-o", "b", unchanged=place, says=OVERWRITES)
    refused("linear-merge", "a", "b", "-o", "link/in", unchanged=place, says=OVERWRITES)


def test_an_output_must_not_be_a_base_or_hold_a_sidecar_that_is_read(place: Path) -> None:
    shutil.copytree(place / "a", place / "c")
    line = ("linear-merge", "a", "b", "--weights", "1,1", "--no-normalize", "--base", "c")
    refused(*line, "-o", "c", unchanged=place, says=OVERWRITES)
    (place / "side").mkdir()
    for name in ("a", "b"):
        shutil.move(place / name / "clmerge/fisher.safetensors", place / f"side/{name}.safetensors")
    line = ("fisher-merge", "a", "b", "--fisher", "side/a.safetensors")
    line += ("--fisher", "side/b.safetensors", "-o", "side")
    refused(*line, unchanged=place, says=OVERWRITES)


def test_a_single_file_input_is_not_overwritten(place: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(place / name / "model.safetensors", place / f"{name}.safetensors")
    line = ("linear-merge", "a.safetensors", "b.safetensors", "-o", "a.safetensors", "--force")
    refused(*line, unchanged=place, says=OVERWRITES)


@pytest.mark.parametrize("command", MERGES)
def test_an_output_made_by_others_is_never_replaced(place: Path, command: str) -> None:
    (place / "merged").mkdir()
    (place / "merged" / "thesis.txt").write_text("years of work")
    line = (command, "a", "b")
    says = ("the output exists", "merged", "choose another -o, or move it away")
    refused(*line, unchanged=place, says=says)
    says = ("was not made by clmerge, so it is not replaced", "merged", "choose another -o")
    refused(*line, "--force", unchanged=place, says=says)


@pytest.mark.parametrize("output", ["out", "out.safetensors"])
def test_a_file_made_by_others_is_never_replaced(place: Path, output: str) -> None:
    (place / output).write_text("years of work")
    line = ("linear-merge", "a", "b", "-o", output)
    refused(*line, unchanged=place, says=("the output exists", output))
    refused(*line, "--force", unchanged=place, says=("was not made by clmerge", output))


def test_a_dangling_link_is_never_replaced(place: Path) -> None:
    (place / "merged").symlink_to("nowhere")
    refused("linear-merge", "a", "b", "--force", unchanged=place, says=("was not made by",))


@pytest.mark.parametrize("output", ["merged", "merged.safetensors"])
def test_an_output_of_another_command_needs_force_and_is_then_replaced(
    place: Path, output: str
) -> None:
    line = ("linear-merge", "a", "b", "-o", output)
    assert clmerge(*line).code == 0
    says = ("the output exists", output, "add --force to replace it")
    refused(*line, "--weights", "1,3", unchanged=place, says=says)
    assert clmerge(*line, "--weights", "1,3", "--force").code == 0
    path = place / output / "model.safetensors" if output == "merged" else place / output
    one, two = weights(1), weights(2)
    for name, tensor in load_file(path).items():
        expected = (one[name].double() + 3 * two[name].double()) / 4
        torch.testing.assert_close(tensor, expected.float(), rtol=0, atol=3e-7)
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("output", ["merged", "merged.safetensors"])
def test_bad_input_under_force_leaves_the_old_output(place: Path, output: str) -> None:
    assert clmerge("linear-merge", "a", "b", "-o", output).code == 0
    tensors = place / "b" / "model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # a NaN
    tensors.write_bytes(bytes(content))
    line = ("linear-merge", "a", "b", "-o", output, "--force")
    refused(*line, unchanged=place, says=("an input holds NaN or Inf",))


def test_an_empty_folder_is_accepted(place: Path) -> None:
    (place / "merged").mkdir()
    assert clmerge("linear-merge", "a", "b").code == 0
    for name, tensor in load_file(place / "merged" / "model.safetensors").items():
        torch.testing.assert_close(tensor, average(1, 2)[name], rtol=0, atol=3e-7)


def test_the_working_directory_is_filled_where_it_lies(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    assert clmerge("linear-merge", "../a", "../b", "-o", ".").code == 0
    assert here.stat().st_ino == inode
    made = {"model.safetensors", "config.json", "README.md", "clmerge"}
    assert {path.name for path in here.iterdir()} == made


def test_missing_folders_above_the_output_are_made(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b", "-o", "new/deep/merged").code == 0
    assert (place / "new/deep/merged/model.safetensors").is_file()


def test_an_output_below_a_file_is_refused(place: Path) -> None:
    (place / "file").write_text("no folder")
    line = ("linear-merge", "a", "b", "-o", "file/merged")
    message = refused(*line, unchanged=place, says=("file",))
    assert "unexpected" not in message


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize("command", MERGES)
def test_a_disk_without_room_is_refused_before_anything_is_written(
    place: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    says = ("no room on the disk", str(place), "bytes are needed, 1000 are free", "free some")
    refused(command, "a", "b", unchanged=place, says=says)


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "pwrite"])
def test_a_disk_that_fills_up_is_told_and_the_same_command_goes_on_afterwards(
    place: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = snapshot(place)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        result = clmerge("linear-merge", "a", "b")
    assert result.code == 1
    lines = failure_lines(result)
    assert lines[0] == "error: writing failed"
    assert "No space left on device" in lines[1]
    assert "same command again" in lines[2]
    left = snapshot(place)
    assert not (place / "merged").exists()
    assert {path: left[path] for path in before} == before
    assert clmerge("linear-merge", "a", "b").code == 0
    assert load_file(place / "merged" / "model.safetensors").keys() == weights(1).keys()
    assert not list(place.glob(".*"))


def test_a_memory_limit_below_one_worker_is_wrong_usage(place: Path) -> None:
    says = ("the memory limit is too small", "--memory 1000", "--memory 9MiB")
    refused("linear-merge", "a", "b", "--memory", "1000", unchanged=place, says=says[:2], code=2)


@pytest.mark.parametrize(
    ("device", "says"),
    [("tpu", "no such device"), ("cuda:99", "no such GPU here"), ("meta", "only cpu and cuda")],
)
def test_a_device_that_is_not_there_is_wrong_usage(place: Path, device: str, says: str) -> None:
    line = ("linear-merge", "a", "b", "--device", device)
    refused(*line, unchanged=place, says=(says, f"--device {device}"), code=2)
