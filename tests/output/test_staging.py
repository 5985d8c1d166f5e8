"""The temporary place: one process at a time, one command at a time, nothing left behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from making import files_below

from mergekit_cl.errors import OutputError
from mergekit_cl.output.staging import Staging

ONE = {"command": "linear-merge", "options": {"weights": [0.5, 0.5]}, "inputs": [], "output": "x"}
OTHER = {**ONE, "options": {"weights": [0.1, 0.9]}}
HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def opened(target: Path, **options: bool) -> Staging:
    staging = Staging(target)
    staging.open(ONE, **options)
    return staging


def fill(out: Path, **files: bytes) -> None:
    """An output with these files and a manifest."""
    (out / "clmerge").mkdir()
    (out / "clmerge/manifest.json").write_bytes(b"{}")
    for name, content in files.items():
        (out / name).write_bytes(content)


MADE = {"clmerge/manifest.json": b"{}"}


def test_work_lies_beside_the_target_until_it_is_published(tmp_path: Path) -> None:
    staging = opened(tmp_path / "out")
    fill(staging.out, weights=b"1")
    assert staging.place.parent == tmp_path
    assert not (tmp_path / "out").exists()
    staging.publish()
    assert files_below(tmp_path / "out") == {"weights": b"1", **MADE}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_above_the_target_are_made(tmp_path: Path) -> None:
    staging = opened(tmp_path / "x/y/out")
    fill(staging.out, f=b"1")
    staging.publish()
    assert files_below(tmp_path / "x/y/out") == {"f": b"1", **MADE}


def test_folders_made_above_the_target_go_with_work_that_came_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    opened(tmp_path / "x/y/z/out").close()
    again = opened(tmp_path / "x/y/z/out")  # what an interrupted run made is remembered
    again.discard()
    assert list((tmp_path / "x").iterdir()) == []


def test_folders_above_the_target_stay_where_others_use_them(tmp_path: Path) -> None:
    staging = opened(tmp_path / "x/y/out")
    (tmp_path / "x/mine").write_bytes(b"1")
    staging.discard()
    assert files_below(tmp_path) == {"x/mine": b"1"}
    assert not (tmp_path / "x/y").exists()


def test_a_place_held_by_another_process_is_refused_and_left_alone(tmp_path: Path) -> None:
    staging = opened(tmp_path / "out")
    (staging.out / "part").write_bytes(b"work")
    staging.close()
    before = files_below(staging.place)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(staging.place / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for identity, restart in ((ONE, False), (OTHER, False), (ONE, True)):
            with pytest.raises(OutputError, match="another process") as caught:
                Staging(tmp_path / "out").open(identity, restart=restart)
            assert str(tmp_path / "out") in (caught.value.detail or "")
        assert files_below(staging.place) == before
    finally:
        holder.communicate()
    opened(tmp_path / "out").close()


def test_an_old_output_aside_is_not_touched_while_another_process_replaces_it(
    tmp_path: Path,
) -> None:
    holding = opened(tmp_path / "out")  # it stands between its two renames
    aside = tmp_path / ".out.replaced"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"old")
    with pytest.raises(OutputError, match="another process"):
        opened(tmp_path / "out")
    assert files_below(aside) == {"model.safetensors": b"old"}
    assert not (tmp_path / "out").exists()
    holding.close()


def test_the_lock_goes_with_the_work(tmp_path: Path) -> None:
    staging = opened(tmp_path / "out")
    with pytest.raises(OutputError):
        opened(tmp_path / "out")
    staging.discard()
    assert list(tmp_path.iterdir()) == []
    opened(tmp_path / "out").discard()


def test_a_lock_on_a_file_that_is_gone_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between opening the file and locking it, the run that held it ended and removed the place,
    # and yet another one made it again.
    place = Staging(tmp_path / "out").place
    real = fcntl.flock
    removed: list[Path] = []

    def flock(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(place)
            shutil.rmtree(place)
            place.mkdir()
            (place / "lock").touch()
        real(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        mine = Staging(tmp_path / "out")
        mine.open(ONE)
    assert removed
    with pytest.raises(OutputError, match="another process"):
        opened(tmp_path / "out")
    mine.close()


def test_the_same_run_finds_what_it_left(tmp_path: Path) -> None:
    staging = opened(tmp_path / "out")
    (staging.out / "part").write_bytes(b"work")
    staging.journal.append({"shard": "part"})
    staging.close()
    again = opened(tmp_path / "out")
    assert (again.out / "part").read_bytes() == b"work"
    assert again.journal.read() == [{"shard": "part"}]
    again.close()


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    opened(tmp_path / "out").close()
    with pytest.raises(OutputError, match="another command") as caught:
        Staging(tmp_path / "out").open(OTHER)
    assert "options" in (caught.value.detail or "")
    assert "--restart" in (caught.value.hint or "")
    opened(tmp_path / "out").close()  # the refused one holds no lock


def test_restarting_forgets_what_was_left(tmp_path: Path) -> None:
    staging = opened(tmp_path / "out")
    (staging.out / "part").write_bytes(b"work")
    staging.journal.append({"shard": "part"})
    staging.close()
    again = Staging(tmp_path / "out")
    again.open(OTHER, restart=True)
    assert list(again.out.iterdir()) == []
    assert again.journal.read() == []
    again.close()
    with pytest.raises(OutputError):
        opened(tmp_path / "out")


def test_rubbish_in_the_record_of_a_run_is_no_run(tmp_path: Path) -> None:
    staging = opened(tmp_path / "out")
    (staging.out / "part").write_bytes(b"work")
    (staging.place / "run.json").write_bytes(b'{"torn')
    staging.close()
    again = opened(tmp_path / "out")
    assert list(again.out.iterdir()) == []
    again.close()


def test_a_single_file_has_its_companions_beside_it(tmp_path: Path) -> None:
    target, side = tmp_path / "x.safetensors", tmp_path / "x.clmerge"
    staging = Staging(target, side_folder=side)
    staging.open(ONE)
    (staging.out / "x.safetensors").write_bytes(b"weights")
    (staging.out / "x.clmerge").mkdir()
    (staging.out / "x.clmerge/manifest.json").write_bytes(b"{}")
    staging.publish()
    assert files_below(tmp_path) == {"x.safetensors": b"weights", "x.clmerge/manifest.json": b"{}"}


def test_the_working_directory_is_filled_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inode = tmp_path.stat().st_ino
    staging = opened(Path())
    fill(staging.out, weights=b"1")
    staging.publish()
    assert tmp_path.stat().st_ino == inode
    assert files_below(tmp_path) == {"weights": b"1", **MADE}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clmerge", "weights"]


def test_a_mount_point_is_filled_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mount)
    staging = opened(mount)
    assert staging.place.parent == mount  # the place beside it may be another file system
    fill(staging.out, f=b"1")
    staging.publish()
    assert files_below(mount) == {"f": b"1", **MADE}


def test_what_was_being_published_is_completed_and_says_whose_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = opened(tmp_path / "out")
    fill(staging.out, f=b"1")
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "_move", lambda self, record: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            staging.publish()
    staging.close()
    for _ in range(2):  # it may be killed again: nothing is moved twice
        again = Staging(tmp_path / "out")
        assert again.complete() == ONE
        assert files_below(tmp_path / "out") == {"f": b"1", **MADE}
        again.close()
    again.complete()
    again.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Staging(tmp_path / "out").complete() is None


def test_what_nobody_claims_any_more_is_removed_and_what_another_run_left_is_not(
    tmp_path: Path,
) -> None:
    opened(tmp_path / "out").close()
    Staging(tmp_path / "out").clear(OTHER)
    assert Staging(tmp_path / "out").place.exists()
    held = opened(tmp_path / "out")
    Staging(tmp_path / "out").clear(ONE)  # it is still at work
    assert (held.place / "run.json").exists()
    held.close()
    (held.place / "run.json").unlink()  # it died while it removed the rest
    Staging(tmp_path / "out").clear(OTHER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["file/out", "file/deeper/out"])
def test_a_place_that_cannot_be_made_is_an_error_of_the_output(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OutputError):
        opened(tmp_path / target)
    assert files_below(tmp_path) == {"file": b"mine"}


def test_single_files_can_be_moved_over_others(tmp_path: Path) -> None:
    staging = opened(tmp_path / "out")
    for name in ("a", "b"):
        (staging.out / name).write_bytes(name.encode())
    (tmp_path / "b").write_bytes(b"old")
    staging.publish_over(tmp_path, ("a", "b"))
    assert files_below(tmp_path) == {"a": b"a", "b": b"b"}
