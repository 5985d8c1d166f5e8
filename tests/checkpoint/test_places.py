"""Which files a path means, and what is said where it means none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from making import write_index, write_model, write_pickle, write_sharded

from mergekit_cl.checkpoint.index import read_index
from mergekit_cl.checkpoint.places import locate
from mergekit_cl.errors import FormatError, InputError

W = {"w": torch.ones(2)}
V = {"v": torch.ones(2)}


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    place = locate(write_model(tmp_path / "m", W))
    assert place.root == tmp_path / "m"
    assert place.files == (tmp_path / "m/model.safetensors",)
    assert place.weight_map is None
    assert place.side_folder == tmp_path / "m/clmerge"


def test_a_path_given_as_text_means_the_same(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", W)
    assert locate(str(folder)) == locate(folder)


def test_a_folder_with_an_index_is_the_files_it_names_in_its_order(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", [V, W])
    place = locate(folder)
    assert [path.name for path in place.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert place.weight_map == {
        "v": "model-00001-of-00002.safetensors",
        "w": "model-00002-of-00002.safetensors",
    }


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pt", "x.pth"])
def test_a_single_file_keeps_its_side_folder_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    place = locate(tmp_path / name)
    assert place.files == (tmp_path / name,)
    assert place.root == tmp_path
    assert place.side_folder == tmp_path / "x.clmerge"


def test_a_name_with_dots_loses_only_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "v1.5.safetensors").write_bytes(b"")
    assert locate(tmp_path / "v1.5.safetensors").side_folder == tmp_path / "v1.5.clmerge"


def test_safetensors_go_before_pickles(tmp_path: Path) -> None:
    write_pickle(tmp_path / "m/pytorch_model.bin", W)
    assert locate(tmp_path / "m").files[0].name == "pytorch_model.bin"
    write_sharded(tmp_path / "m", [V, W])
    assert len(locate(tmp_path / "m").files) == 2
    write_model(tmp_path / "m", W)
    assert [path.name for path in locate(tmp_path / "m").files] == ["model.safetensors"]


def test_an_index_can_be_named_itself(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", [V, W])
    assert locate(folder / "model.safetensors.index.json").files == locate(folder).files


def test_links_into_a_cache_are_followed(tmp_path: Path) -> None:
    # The hub's cache keeps snapshots as folders of links to files named by their digest.
    folder = write_sharded(tmp_path / "blobs", [V, W])
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert len(locate(snapshot).files) == 2


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        locate(tmp_path / "absent")
    assert "absent" in (caught.value.detail or "")


def test_a_bare_hub_name_is_an_error_that_tells_how_to_mean_the_hub() -> None:
    with pytest.raises(InputError) as caught:
        locate("someone/some-model")
    assert "hf://someone/some-model" in (caught.value.hint or "")


def test_a_file_url_means_its_path(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "with a space", W)
    assert locate(folder.as_uri()) == locate(folder)


def test_a_name_longer_than_any_file_system_allows_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        locate(tmp_path / ("x" * 300))


def test_a_folder_without_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        locate(tmp_path)


def test_a_folder_with_weights_of_another_name_says_to_name_the_file(tmp_path: Path) -> None:
    write_pickle(tmp_path / "checkpoint.pt", W)
    with pytest.raises(InputError) as caught:
        locate(tmp_path)
    assert "file itself" in (caught.value.hint or "")


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        locate(tmp_path)
    assert "adapter" in (caught.value.hint or "")


OUTSIDE = ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "./w.bin"]


@pytest.mark.parametrize("file", OUTSIDE)
def test_an_index_that_names_a_file_outside_its_folder_is_refused(
    tmp_path: Path, file: str
) -> None:
    write_model(tmp_path / "m/sub", W)
    (tmp_path / "other.safetensors").write_bytes(b"")
    (tmp_path / "m/w.bin").write_bytes(b"")
    index = write_index(tmp_path / "m/model.safetensors.index.json", {"w": file})
    with pytest.raises(FormatError, match="outside its folder"):
        read_index(index)


def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", [V, W])
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FormatError, match="not there") as caught:
        locate(folder)
    assert "model-00002-of-00002.safetensors" in (caught.value.detail or "")


def test_an_index_that_names_a_folder_as_its_file_is_refused(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", [V, W])
    (folder / "model-00002-of-00002.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").mkdir()
    with pytest.raises(FormatError):
        locate(folder)


BROKEN: dict[str, bytes] = {
    "not JSON": b"{",
    "not text": b"\xff\xfe\xfa",
    "empty": b"",
    "a list": b"[]",
    "no weight_map": b'{"metadata": {}}',
    "an empty weight_map": b'{"weight_map": {}}',
    "a weight_map that is a list": b'{"weight_map": ["w"]}',
    "a file that is a number": b'{"weight_map": {"w": 1}}',
    "a file that is null": b'{"weight_map": {"w": null}}',
    "a file that is a list": b'{"weight_map": {"w": ["x"]}}',
    "a file with a zero byte": b'{"weight_map": {"w": "a\\u0000b"}}',
    "a file of a name too long": b'{"weight_map": {"w": "' + b"x" * 300 + b'"}}',
    "a file whose name is no text": b'{"weight_map": {"w": "\\ud800"}}',
    "nesting without end": b"[" * 100_000,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_index_is_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(BROKEN[case])
    with pytest.raises(FormatError, match="index"):
        locate(tmp_path)


def test_an_index_is_not_asked_about_files_it_leaves_out(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "m", [V, W])
    shutil.copyfile(folder / "model-00001-of-00002.safetensors", folder / "old.safetensors")
    assert len(locate(folder).files) == 2
