"""At every instant a reader finds the old output or the new one, whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from making import files_below

from mergekit_cl.output import publish
from mergekit_cl.output.durable import sync_tree
from mergekit_cl.output.publish import (
    exchange,
    finish_interrupted,
    publish_directory,
    publish_inside,
)

NEW = {"clmerge/manifest.json": b"new", "model.safetensors": b"new weights"}
OLD = {"clmerge/manifest.json": b"old", "model.safetensors": b"old weights", "extra": b"old"}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_where_nothing_is_it_appears_by_one_rename(tmp_path: Path) -> None:
    staged = fill(tmp_path / "staged", NEW)
    inode = staged.stat().st_ino
    publish_directory(staged, tmp_path / "out")
    assert files_below(tmp_path / "out") == NEW
    assert (tmp_path / "out").stat().st_ino == inode
    assert not staged.exists()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    publish_directory(fill(tmp_path / "staged", NEW), tmp_path / "out")
    assert files_below(tmp_path / "out") == NEW


@pytest.mark.parametrize("by_exchange", [True, False])
def test_what_was_there_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_exchange: bool
) -> None:
    if not by_exchange:
        monkeypatch.setattr(publish, "exchange", lambda one, other: False)
    fill(tmp_path / "out", OLD)
    publish_directory(fill(tmp_path / "staged", NEW), tmp_path / "out")
    assert files_below(tmp_path / "out") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_exchange_swaps_two_folders_in_one_step(tmp_path: Path) -> None:
    one, other = fill(tmp_path / "one", NEW), fill(tmp_path / "other", OLD)
    if not exchange(one, other):
        pytest.skip("this file system cannot exchange")
    assert files_below(one) == OLD
    assert files_below(other) == NEW


def test_what_cannot_be_exchanged_is_said_not_raised(tmp_path: Path) -> None:
    assert exchange(tmp_path / "absent", tmp_path / "absent too") is False


def test_a_reader_never_misses_the_output_while_it_is_exchanged(tmp_path: Path) -> None:
    target = fill(tmp_path / "out", OLD)
    if not exchange(fill(tmp_path / "x", NEW), target) or not exchange(tmp_path / "x", target):
        pytest.skip("this file system cannot exchange")
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add((target / "model.safetensors").read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(30):
        publish_directory(fill(tmp_path / f"staged{i}", NEW if i % 2 else OLD), target)
    done.set()
    reader.join()
    assert seen <= {b"new weights", b"old weights"}


def aside(folder: Path) -> Path:
    """Where the old output stands between two renames, found by making that happen."""
    fill(folder / "probe", OLD)
    staged = fill(folder / "staged", NEW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "exchange", lambda one, other: False)
        real = Path.rename
        calls = []

        def second_fails(self: Path, to: Path) -> Path:
            calls.append(to)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(self, to)

        patch.setattr(Path, "rename", second_fails)
        with pytest.raises(KeyboardInterrupt):
            publish_directory(staged, folder / "probe")
    assert not (folder / "probe").exists()
    return Path(calls[0])


def test_between_two_renames_the_old_output_is_kept_and_brought_back(tmp_path: Path) -> None:
    left = aside(tmp_path)
    assert files_below(left) == OLD
    finish_interrupted(tmp_path / "probe")
    assert files_below(tmp_path / "probe") == OLD
    assert not left.exists()


def test_after_both_renames_the_old_output_is_removed(tmp_path: Path) -> None:
    left = aside(tmp_path)
    (tmp_path / "staged").rename(tmp_path / "probe")
    finish_interrupted(tmp_path / "probe")
    assert files_below(tmp_path / "probe") == NEW
    assert not left.exists()


def test_without_an_interruption_there_is_nothing_to_finish(tmp_path: Path) -> None:
    fill(tmp_path / "out", OLD)
    finish_interrupted(tmp_path / "out")
    assert files_below(tmp_path / "out") == OLD
    finish_interrupted(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_inside_a_folder_the_index_and_the_manifest_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.safetensors", "z.safetensors", "config.json", "model.safetensors.index.json"]
    staged = fill(tmp_path / "staged", {**dict.fromkeys(names, b"x"), "clmerge/manifest.json": b""})
    target = fill(tmp_path / "out", {"of the user": b"kept"})
    order: list[str] = []
    real = Path.replace

    def replace(self: Path, to: Path) -> Path:
        order.append(self.name)
        return real(self, to)

    monkeypatch.setattr(Path, "replace", replace)
    publish_inside(staged, target, ("model.safetensors.index.json", "clmerge"))
    assert order[-2:] == ["model.safetensors.index.json", "clmerge"]
    assert set(order) == {*names, "clmerge"}
    assert (target / "of the user").read_bytes() == b"kept"


def test_inside_a_folder_an_older_output_gives_way(tmp_path: Path) -> None:
    target = fill(tmp_path / "out", OLD)
    publish_inside(fill(tmp_path / "staged", NEW), target, ("clmerge",))
    found = files_below(target)
    assert {name: found[name] for name in NEW} == NEW


def test_a_tree_can_be_forced_to_the_disk(tmp_path: Path) -> None:
    fill(tmp_path, NEW)
    sync_tree(tmp_path)
    assert files_below(tmp_path) == NEW
