"""An output that is one file, with its side folder beside it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from making import (
    files_below,
    linear,
    merge,
    model_tensors,
    weight_bytes,
    write_model,
    write_pickle,
    write_sidecar,
)

from mergekit_cl.errors import Interrupted, OutputError
from mergekit_cl.methods.method import Method


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return [write_model(tmp_path / name, model_tensors(k)) for k, name in enumerate("ab")]


def test_it_holds_everything_whatever_the_limit(inputs: list[Path], tmp_path: Path) -> None:
    merge(linear(inputs), tmp_path / "folder")
    merge(linear(inputs), tmp_path / "x.safetensors", shard_size=100)
    assert weight_bytes(tmp_path / "x.safetensors") == weight_bytes(tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a", "b", "folder"),
        *("x.safetensors", "x.clmerge"),
    }
    assert set(files_below(tmp_path / "x.clmerge")) == {
        "manifest.json",
        "divergence.json",
        "report.html",
    }
    manifest = json.loads((tmp_path / "x.clmerge/manifest.json").read_bytes())
    assert [file["name"] for file in manifest["outputs"][0]["files"]] == ["x.safetensors"]


def test_it_is_confirmed_and_replaced_as_a_folder_is(inputs: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    assert merge(linear(inputs), target).state == "published"
    assert merge(linear(inputs), target).state == "up to date"
    changed = linear(inputs, weights=(1, 2))
    with pytest.raises(OutputError, match="exists"):
        merge(changed, target)
    assert merge(changed, target, force=True).state == "published"
    merge(changed, tmp_path / "folder")
    assert weight_bytes(target) == weight_bytes(tmp_path / "folder")


def test_a_file_of_another_origin_is_never_replaced(inputs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"mine")
    for force in (False, True):
        with pytest.raises(OutputError, match="exists"):
            merge(linear(inputs), tmp_path / "x.safetensors", force=force)
    assert (tmp_path / "x.safetensors").read_bytes() == b"mine"


def attempt(method: Method, target: Path, **options: bool) -> None:
    """A merge that may be refused; what it must not do is checked afterwards."""
    with suppress(OutputError):
        merge(method, target, **options)


@pytest.mark.parametrize("force", [False, True])
def test_the_sidecar_of_an_input_in_the_same_side_folder_survives(
    inputs: list[Path], tmp_path: Path, force: bool
) -> None:
    # x.bin and x.safetensors share the folder x.clmerge.
    pickled = write_pickle(tmp_path / "x.bin", dict(model_tensors(0)))
    sidecar = write_sidecar(pickled, {"lm_head.weight": torch.ones(37, 16)})
    before = sidecar.read_bytes()
    attempt(linear([pickled, inputs[1]]), tmp_path / "x.safetensors", force=force)
    assert sidecar.read_bytes() == before


def test_a_side_folder_of_another_origin_survives(inputs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "x.clmerge").mkdir()
    (tmp_path / "x.clmerge/notes.txt").write_text("dear")
    attempt(linear(inputs), tmp_path / "x.safetensors")
    assert (tmp_path / "x.clmerge/notes.txt").read_text() == "dear"


@pytest.mark.parametrize("replacing", [False, True])
def test_interrupted_between_its_two_renames_the_next_command_completes_it(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool
) -> None:
    target = tmp_path / "x.safetensors"
    if replacing:
        merge(linear(inputs, weights=(2, 1)), target)
    wanted = linear(inputs, weights=(1, 2))
    real = Path.replace

    def replace(self: Path, to: Path) -> Path:
        if Path(to) == target:
            raise Interrupted(15)
        return real(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Interrupted):
            merge(wanted, target, force=replacing)
    # The side folder, which comes first, speaks of weights that are not there yet.
    merge(wanted, target, force=replacing)
    merge(wanted, tmp_path / "folder")
    assert weight_bytes(target) == weight_bytes(tmp_path / "folder")
    assert not list(tmp_path.glob(".*"))
