"""What is finished is on the disk before it is said, and a torn line is forgotten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mergekit_cl.output.journal import Journal

ENTRIES = [{"shard": f"model-{i}", "tensors": {"w\n": {"digest": "é"}}} for i in range(5)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def test_a_journal_that_was_never_written_is_empty(journal: Journal) -> None:
    assert journal.read() == []


def test_entries_come_back_in_order(journal: Journal) -> None:
    for entry in ENTRIES:
        journal.append(entry)
    assert journal.read() == ENTRIES
    assert Journal(journal.path).read() == ENTRIES


def test_a_line_cut_anywhere_is_dropped_and_the_next_one_takes_its_place(
    journal: Journal,
) -> None:
    for entry in ENTRIES[:2]:
        journal.append(entry)
    whole = journal.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        journal.path.write_bytes(whole[:cut])
        assert journal.read() == ENTRIES[:1]
        journal.append(ENTRIES[2])
        assert journal.read() == [ENTRIES[0], ENTRIES[2]]


def test_what_follows_a_broken_line_is_not_believed(journal: Journal) -> None:
    journal.append(ENTRIES[0])
    with journal.path.open("ab") as stream:
        stream.write(b"\0\0\0\n" + b'{"shard": "x"}\n')
    assert journal.read() == ENTRIES[:1]


def test_an_entry_is_forced_to_the_disk_before_append_returns(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        seen.append(journal.path.read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    journal.append(ENTRIES[0])
    assert seen
    assert seen[-1] == journal.path.read_bytes()
