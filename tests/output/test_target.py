"""What may be written where: refusals before any work, and outputs of every kind of place."""

from __future__ import annotations

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
    write_sharded,
)

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import OutputError
from mergekit_cl.output.target import SPARE_BYTES, check_apart, check_room


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return [write_model(tmp_path / name, model_tensors(k)) for k, name in enumerate("ab")]


@pytest.mark.parametrize("output", ["a", "b", "a/merged", "b/clmerge/x", ".", "a/../b"])
def test_an_output_that_is_in_or_around_an_input_is_refused(
    inputs: list[Path], tmp_path: Path, output: str
) -> None:
    before = files_below(tmp_path)
    with pytest.raises(OutputError, match="overwrite an input"):
        merge(linear(inputs), tmp_path / output, force=True)
    assert files_below(tmp_path) == before


def test_a_link_to_an_input_is_that_input(inputs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(inputs[0])
    with pytest.raises(OutputError, match="overwrite an input"):
        merge(linear(inputs), tmp_path / "link")


def test_a_file_beside_a_single_file_is_no_overlap(tmp_path: Path) -> None:
    one = write_pickle(tmp_path / "one.pt", dict(model_tensors(0)))
    check_apart(tmp_path / "two.safetensors", [open_checkpoint(one)])
    with pytest.raises(OutputError):
        check_apart(one, [open_checkpoint(one)])
    with pytest.raises(OutputError):
        check_apart(tmp_path, [open_checkpoint(one)])


def test_a_shard_of_an_input_named_by_its_index_is_no_output(
    inputs: list[Path], tmp_path: Path
) -> None:
    tensors = model_tensors(0)
    names = list(tensors)
    folder = write_sharded(
        tmp_path / "s", [{n: tensors[n] for n in names[:3]}, {n: tensors[n] for n in names[3:]}]
    )
    index = folder / "model.safetensors.index.json"
    before = files_below(tmp_path)
    with pytest.raises(OutputError):
        merge(linear([index, inputs[1]]), folder / "model-00001-of-00002.safetensors", force=True)
    assert files_below(tmp_path) == before


def test_what_is_not_ours_is_never_replaced(inputs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = files_below(tmp_path)
    for name in ("mine", "file", "dangling"):
        for force in (False, True):
            with pytest.raises(OutputError, match="exists"):
                merge(linear(inputs), tmp_path / name, force=force)
    assert files_below(tmp_path) == before


def test_an_empty_folder_is_accepted(inputs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert merge(linear(inputs), tmp_path / "out").state == "published"


def test_a_link_to_an_empty_folder_is_filled_or_refused_before_any_work(
    inputs: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    told: list[int] = []
    try:
        merge(linear(inputs), tmp_path / "out", lambda title, total: told.append)
    except OutputError:
        assert told == []
    else:
        assert (tmp_path / "out").is_symlink()
        assert weight_bytes(tmp_path / "elsewhere")


def test_an_output_below_a_file_is_refused(inputs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear")
    with pytest.raises(OutputError):
        merge(linear(inputs), tmp_path / "file/out")
    assert (tmp_path / "file").read_text() == "dear"


def test_room_is_checked_before_any_work(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_cl.output import target

    usage = target.shutil.disk_usage(tmp_path)._replace(free=SPARE_BYTES + 100)
    monkeypatch.setattr(target.shutil, "disk_usage", lambda folder: usage)
    check_room(tmp_path / "deep/below/out", 100)
    with pytest.raises(OutputError, match="no room") as caught:
        check_room(tmp_path / "out", 101)
    assert str(SPARE_BYTES + 101) in (caught.value.detail or "")
    before = files_below(tmp_path)
    with pytest.raises(OutputError, match="no room"):
        merge(linear(inputs), tmp_path / "out")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("first_limit", [10**9, 600])
@pytest.mark.parametrize("second_limit", [10**9, 600])
def test_in_the_working_directory_the_newer_output_is_what_opens(
    inputs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first_limit: int,
    second_limit: int,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inode = Path().stat().st_ino
    merge(linear(inputs), Path(), shard_size=first_limit)
    (tmp_path / "here/of the user.txt").write_text("kept")
    newer = linear(inputs, weights=(1, 2))
    merge(newer, Path(), shard_size=second_limit, force=True)
    merge(newer, tmp_path / "fresh", shard_size=second_limit)
    assert Path().stat().st_ino == inode
    with open_checkpoint(Path()) as found, open_checkpoint(tmp_path / "fresh") as fresh:
        assert {path.name for path in found.files} == {path.name for path in fresh.files}
        for name in fresh.tensors:
            assert torch.equal(found.tensor(name), fresh.tensor(name))
    assert (tmp_path / "here/of the user.txt").read_text() == "kept"
    expected = {*files_below(tmp_path / "fresh"), "of the user.txt"}
    assert set(files_below(tmp_path / "here")) == expected
