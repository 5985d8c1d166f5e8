"""The ledger: looks are counted once, by many processes, and survive."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from mergekit_cl.errors import FormatError, InputError
from mergekit_cl.gating.ledger import Ledger, locked_ledger, read_ledger

TEST = {"models": {"candidate": "x"}, "margin": 0.02}


def take(path: Path, number: int) -> None:
    with locked_ledger(path) as ledger:
        ledger.take("rows", {"candidate": number}, {"decision": "accept"})


def test_the_same_test_is_the_same_look_and_another_the_next() -> None:
    ledger = Ledger()
    assert ledger.look_of("a", TEST) == 1
    ledger.take("a", TEST, {})
    ledger.take("a", TEST, {})
    assert ledger.look_of("a", TEST) == 1
    other = TEST | {"margin": 0.01}
    assert ledger.look_of("a", other) == 2
    ledger.take("a", other, {})
    assert ledger.look_of("a", TEST) == 1
    assert ledger.look_of("b", TEST) == 1


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "looks.json"
    assert read_ledger(path).looks == {}
    assert not path.exists()
    for number in (1, 2):
        take(path, number)
    looks = read_ledger(path).looks["rows"]
    assert [one["look"] for one in looks] == [1, 2]
    assert [one["test"] for one in looks] == [{"candidate": 1}, {"candidate": 2}]
    assert [file.name for file in tmp_path.iterdir()] == ["looks.json"]


def test_a_ledger_behind_a_link_stays_there(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    take(tmp_path / "link.json", 1)
    assert (tmp_path / "link.json").is_symlink()
    assert len(read_ledger(tmp_path / "real.json").looks["rows"]) == 1


def test_processes_at_once_lose_no_look(tmp_path: Path) -> None:
    path = tmp_path / "looks.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=take, args=(path, number)) for number in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    looks = read_ledger(path).looks["rows"]
    assert [one["look"] for one in looks] == list(range(1, 13))
    assert sorted(one["test"]["candidate"] for one in looks) == list(range(12))


@pytest.mark.parametrize("content", [None, "", '{"format": "clmerge.ledger/1", "looks": {}}'])
def test_what_fails_leaves_the_ledger_as_it_was(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "looks.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TypeError), locked_ledger(path) as ledger:
        ledger.take("rows", TEST, 3)  # type: ignore[arg-type]
    assert (path.read_text() if path.exists() else None) == content


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": "clmerge.ledger/2", "looks": {}}',
        '{"format": "clmerge.ledger/1"}',
        '{"format": "clmerge.ledger/1", "looks": {"a": [{"look": 2, "test": {}}]}}',
        '{"format": "clmerge.ledger/1", "looks": {"a": [{"look": 1, "test": 3}]}}',
        '{"format": "clmerge.ledger/1", "looks": {"a": [1]}}',
    ],
)
def test_what_is_no_ledger_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "looks.json"
    path.write_text(content)
    with pytest.raises(FormatError, match="ledger"):
        read_ledger(path)
    with pytest.raises(FormatError, match="ledger"):
        take(path, 1)
    assert path.read_text() == content


def test_a_ledger_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ledger"):
        take(tmp_path / "none/looks.json", 1)
    if os.geteuid() != 0:
        path = tmp_path / "looks.json"
        path.write_text(json.dumps({"format": "clmerge.ledger/1", "looks": {}}))
        path.chmod(0)
        with pytest.raises(InputError, match="ledger"):
            read_ledger(path)
