"""An interrupted merge keeps what it finished, and the same command ends in the same bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from making import (
    CONFIG,
    by_fisher,
    files_below,
    fisher_like,
    linear,
    merge,
    model_tensors,
    weight_bytes,
    write_model,
    write_sidecar,
)

from mergekit_cl.errors import ClmergeError, Interrupted, OptionError, OutputError
from mergekit_cl.output import publish, staging
from mergekit_cl.output.journal import Journal
from mergekit_cl.output.shards import ShardFiles

pytestmark = pytest.mark.usefixtures("a_span_for_each_tensor")
LIMIT = 900  # bytes per file: several files, some of several tensors


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    paths = []
    for k, name in enumerate("ab"):
        paths.append(write_model(tmp_path / name, model_tensors(k), CONFIG))
        write_sidecar(paths[-1], fisher_like(model_tensors(k), k))
    return paths


@pytest.fixture
def expected(inputs: list[Path], tmp_path: Path) -> dict[str, bytes]:
    """The files of the merge that nothing interrupted, made in the same place."""
    target = tmp_path / "out"
    run(inputs, target)
    found = comparable(target)
    target.rename(tmp_path / "reference")
    return found


def run(inputs: list[Path], target: Path, progress: Any = None, **options: Any) -> Any:
    settings = {"threads": 1, "shard_size": LIMIT, **options}
    given = () if progress is None else (progress,)
    return merge(by_fisher(inputs), target, *given, **settings)


def comparable(target: Path) -> dict[str, bytes]:
    """All files of an output, the manifest without time and memory."""
    files = files_below(target)
    manifest = json.loads(files["clmerge/manifest.json"])
    del manifest["seconds"], manifest["peak_memory_bytes"]
    return {**files, "clmerge/manifest.json": json.dumps(manifest, sort_keys=True).encode()}


def stopping_after(spans: int) -> Callable[[str, int], Callable[[int], None]]:
    """Progress that is interrupted when it is told of one more span."""
    left = [spans]

    def advance(done: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted(signal.SIGINT)

    return lambda title, total: advance


@contextmanager
def failing(
    patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception, *, at: int, after: bool
) -> Iterator[None]:
    """The call number `at` of a function fails, before or after it has done its work."""
    original = getattr(owner, name)
    calls = [0]

    def once(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] - 1 != at:
            return original(*given, **more)
        if after:
            original(*given, **more)
        raise error

    with patch.context() as inner:
        inner.setattr(owner, name, once)
        yield
    assert calls[0] > at, "the failure never happened"


def test_interrupted_at_any_span_it_continues_to_the_same_bytes(
    inputs: list[Path], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    target = tmp_path / "out"
    for spans in range(len(model_tensors(0))):
        with pytest.raises(Interrupted) as caught:
            run(inputs, target, stopping_after(spans))
        assert str(tmp_path / ".out.partial") in (caught.value.hint or "")
        assert not target.exists()
        assert run(inputs, target).state == "published"
        assert comparable(target) == expected
        assert not (tmp_path / ".out.partial").exists()
        target.rename(tmp_path / f"made-{spans}")


def test_interrupted_again_and_again_it_still_ends(
    inputs: list[Path], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    # Each tensor a file of its own; each attempt is told of what is kept and gets one further.
    attempts = 0
    while attempts < 20:
        attempts += 1
        try:
            run(inputs, tmp_path / "out", stopping_after(2), shard_size=1)
            break
        except Interrupted:
            continue
    assert 4 < attempts < 20
    assert weight_bytes(tmp_path / "out") == weight_bytes(tmp_path / "reference")


def test_what_is_finished_is_not_computed_again(
    inputs: list[Path], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    with pytest.raises(Interrupted):
        run(inputs, tmp_path / "out", stopping_after(5))
    finished = len(Journal(tmp_path / ".out.partial/journal.jsonl").read())
    assert finished >= 2
    kept = {
        path.name: path.stat().st_ino
        for path in (tmp_path / ".out.partial/out").glob("*.safetensors")
    }
    told: list[int] = []
    run(inputs, tmp_path / "out", lambda title, total: told.append)
    assert len(told) < len(model_tensors(0)) + 1
    names = sorted(kept)[:finished]
    assert all((tmp_path / "out" / name).stat().st_ino == kept[name] for name in names)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(ShardFiles, "create"), (ShardFiles, "finish"), (Journal, "append")],
    ids=["create", "finish", "append"],
)
def test_interrupted_around_any_step_of_a_file_it_continues(
    inputs: list[Path],
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    after: bool,
) -> None:
    files = sum(key.endswith(".safetensors") for key in expected)
    for at in range(files):
        stop = Interrupted(signal.SIGTERM)
        with (
            failing(monkeypatch, owner, name, stop, at=at, after=after),
            pytest.raises(Interrupted),
        ):
            run(inputs, tmp_path / "out")
        run(inputs, tmp_path / "out")
        assert comparable(tmp_path / "out") == expected
        (tmp_path / "out").rename(tmp_path / f"made-{at}")


PUBLISHING = [
    (staging, "sync_tree"),
    (staging, "publish_directory"),
    (publish, "sync"),
    (staging.Staging, "_move"),
    (staging.Staging, "discard"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), PUBLISHING, ids=[name for _, name in PUBLISHING])
@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_interrupted_while_publishing_it_ends_whole_and_leaves_nothing_else(
    inputs: list[Path],
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    after: bool,
    replacing: bool,
) -> None:
    target = tmp_path / "out"
    if replacing:
        merge(linear(inputs), target)
    stop = Interrupted(signal.SIGTERM)
    with failing(monkeypatch, owner, name, stop, at=0, after=after), pytest.raises(Interrupted):
        run(inputs, target, force=replacing)
    if target.exists():  # at every instant what is there is one whole output
        assert set(files_below(target)) >= {"clmerge/manifest.json", "config.json"}
        weight_bytes(target)
    run(inputs, target, force=replacing)
    assert comparable(target) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out", "reference"]


def test_a_replacement_in_two_renames_is_completed_by_the_next_command(
    inputs: list[Path],
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "out"
    merge(linear(inputs), target)
    old = files_below(target)
    monkeypatch.setattr(publish, "exchange", lambda one, other: False)
    stop = Interrupted(signal.SIGTERM)
    # The second of the two renames fails: the old output stands aside, the target is missing.
    with failing(monkeypatch, Path, "rename", stop, at=1, after=False), pytest.raises(Interrupted):
        run(inputs, target, force=True)
    assert not target.exists()
    assert old in [files_below(p) for p in tmp_path.iterdir() if p.name.startswith(".out.")]
    run(inputs, target, force=True)
    assert comparable(target) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out", "reference"]


@pytest.mark.parametrize("junk", [b'{"shard": "model-0000', b"\0" * 40, b"{}garbage\n"])
def test_a_torn_last_line_of_the_journal_is_forgotten(
    inputs: list[Path], tmp_path: Path, expected: dict[str, bytes], junk: bytes
) -> None:
    with pytest.raises(Interrupted):
        run(inputs, tmp_path / "out", stopping_after(5))
    with (tmp_path / ".out.partial/journal.jsonl").open("ab") as stream:
        stream.write(junk)
    run(inputs, tmp_path / "out")
    assert comparable(tmp_path / "out") == expected


def test_a_finished_file_that_was_lost_is_made_again(
    inputs: list[Path], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    with pytest.raises(Interrupted):
        run(inputs, tmp_path / "out", stopping_after(5))
    (tmp_path / ".out.partial/out/model-00001-of-00004.safetensors").unlink(missing_ok=True)
    min((tmp_path / ".out.partial/out").glob("*.safetensors")).unlink()
    run(inputs, tmp_path / "out")
    assert comparable(tmp_path / "out") == expected


def test_another_number_of_threads_may_finish_the_work(
    inputs: list[Path], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    with pytest.raises(Interrupted):
        run(inputs, tmp_path / "out", stopping_after(4))
    run(inputs, tmp_path / "out", threads=3)
    assert comparable(tmp_path / "out") == expected


def test_a_full_disk_keeps_what_is_done(
    inputs: list[Path],
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        failing(monkeypatch, os, "posix_fallocate", full, at=2, after=False),
        pytest.raises(OutputError) as caught,
    ):
        run(inputs, tmp_path / "out")
    assert "No space left" in (caught.value.detail or "")
    assert len(Journal(tmp_path / ".out.partial/journal.jsonl").read()) == 2
    run(inputs, tmp_path / "out")
    assert comparable(tmp_path / "out") == expected


def test_room_that_the_unfinished_run_already_took_is_not_asked_for_again(
    inputs: list[Path],
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mergekit_cl.output import target

    # Large enough for the spare room not to matter: nothing more than it is free.
    with (
        failing(monkeypatch, staging, "sync_tree", Interrupted(15), at=0, after=False),
        pytest.raises(Interrupted),
    ):
        run(inputs, tmp_path / "out")
    usage = target.shutil.disk_usage(tmp_path)._replace(free=target.SPARE_BYTES)
    monkeypatch.setattr(target.shutil, "disk_usage", lambda folder: usage)
    run(inputs, tmp_path / "out")
    assert comparable(tmp_path / "out") == expected


def test_another_command_in_the_same_place_is_refused_and_changes_nothing(
    inputs: list[Path], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    with pytest.raises(Interrupted):
        run(inputs, tmp_path / "out", stopping_after(4))
    before = files_below(tmp_path / ".out.partial")
    for other in ({"dtype": "F32"}, {"shard_size": 10**6}, {"report": False}):
        with pytest.raises(OutputError, match="another command") as caught:
            run(inputs, tmp_path / "out", **other)
        assert "--restart" in (caught.value.hint or "")
    with pytest.raises(OutputError, match="another command"):
        merge(linear(inputs), tmp_path / "out", shard_size=LIMIT)
    assert files_below(tmp_path / ".out.partial") == before
    run(inputs, tmp_path / "out")
    assert comparable(tmp_path / "out") == expected


def test_restart_discards_the_unfinished_run(
    inputs: list[Path], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    with pytest.raises(Interrupted):
        run(inputs, tmp_path / "out", stopping_after(4), dtype="F32")
    told: list[int] = []
    run(inputs, tmp_path / "out", lambda title, total: told.append, restart=True)
    assert len(told) == len(model_tensors(0))
    assert comparable(tmp_path / "out") == expected


def test_inputs_that_changed_meanwhile_are_another_command(
    inputs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run(inputs, tmp_path / "out", stopping_after(4))
    write_model(inputs[1], model_tensors(5), CONFIG)
    with pytest.raises(OutputError, match="another command"):
        run(inputs, tmp_path / "out")


def test_a_wrong_option_does_not_cost_the_work_that_is_done(
    inputs: list[Path], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    with pytest.raises(Interrupted):
        run(inputs, tmp_path / "out", stopping_after(5))
    before = files_below(tmp_path / ".out.partial")
    for wrong in ({"memory": 1000}, {"device": "cuda:99"}, {"device": "nonsense"}):
        with pytest.raises(OptionError):
            run(inputs, tmp_path / "out", **wrong)
        assert files_below(tmp_path / ".out.partial") == before
    run(inputs, tmp_path / "out")
    assert comparable(tmp_path / "out") == expected


def test_bad_input_found_on_the_way_leaves_nothing_of_the_unfinished_run(
    inputs: list[Path], tmp_path: Path
) -> None:
    # Nothing of a refused merge is worth keeping: the input must change first.
    bad = model_tensors(1)
    bad["model.embed_tokens.weight"].fill_(float("inf"))
    other = write_model(tmp_path / "c", bad, CONFIG)
    before = files_below(tmp_path)
    with pytest.raises(ClmergeError, match="NaN or Inf"):
        merge(linear([inputs[0], other]), tmp_path / "out", shard_size=LIMIT, threads=1)
    assert files_below(tmp_path) == before
    assert torch.isinf(bad["model.embed_tokens.weight"]).all()
