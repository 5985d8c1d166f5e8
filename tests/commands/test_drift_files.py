"""Which rows of a file a watch takes for new: after growth, a rename, a replacement, a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.drifting import calibrated, drifting, numbers, objects, stable, table, watch

QUIET = stable(200, 21)


def rows_of(state: Path) -> int:
    return int(json.loads(state.read_text())["rows"])


@pytest.mark.parametrize("form", [objects, table, numbers])
def test_a_file_that_grew_is_read_on_and_gives_the_state_of_one_read(tmp_path: Path, form) -> None:  # type: ignore[no-untyped-def]
    once = calibrated(tmp_path)
    losses = tmp_path / "losses"
    lines = form(drifting()).splitlines(keepends=True)
    losses.write_text("".join(lines))
    whole = watch(once, losses, "--all", "--json").document
    final = json.loads(once.read_text())
    once.unlink()
    state = calibrated(tmp_path)
    alarms, rows = [], 0
    for end in (1, 150, 151, len(lines)):
        losses.write_text("".join(lines[:end]))
        result = watch(state, losses, "--all", "--json")
        if end == 1 and form is table:  # a header alone is no row
            assert result.code == 1
            continue
        alarms += result.document["alarms"]
        rows += result.document["rows"]
        again = watch(state, losses, "--all", "--json")
        assert (again.code, again.document["rows"]) == (0, 0)
    assert rows == whole["rows"] == 400
    assert alarms == whole["alarms"]
    assert alarms
    assert json.loads(state.read_text()) == final


def test_a_renamed_file_is_known_by_its_content(tmp_path: Path) -> None:
    state = calibrated(tmp_path)
    losses = tmp_path / "losses.jsonl"
    losses.write_text(objects(QUIET[:100]))
    watch(state, losses)
    moved = losses.rename(tmp_path / "moved.jsonl")
    moved.write_text(objects(QUIET))
    document = watch(state, moved, "--json").document
    assert (document["first_row"], document["rows"], document["notes"]) == (101, 100, [])


@pytest.mark.parametrize(
    "text",
    [
        objects(stable(150, 30)),
        objects(QUIET[:50]),
        objects([9.0, *QUIET[1:100], 2.7]),
        objects(QUIET)[1:].replace("step", "spet"),
    ],
    ids=["replaced", "truncated", "edited", "renamed key"],
)
def test_a_file_with_another_beginning_is_noticed_and_read_whole(tmp_path: Path, text: str) -> None:
    state = calibrated(tmp_path)
    losses = tmp_path / "losses.jsonl"
    losses.write_text(objects(QUIET[:100]))
    watch(state, losses)
    losses.write_text(text if text.startswith("{") else "{" + text)
    result = watch(state, losses, "--all", "--json")
    document = result.document
    assert document["first_row"] == 1
    assert document["rows"] == text.count("\n")
    (note,) = document["notes"]
    assert "does not begin with the 100 rows that were read of" in note
    assert f"warning: {note}" in result.err
    assert rows_of(state) == 100 + text.count("\n")
    assert watch(state, losses, "--all", "--json").document["rows"] == 0


def test_an_onset_is_counted_in_the_file_that_is_read(tmp_path: Path) -> None:
    state = calibrated(tmp_path)
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text(objects(QUIET))
    watch(state, first, "--all")
    second.write_text(objects(drifting()))
    alarms = watch(state, second, "--all", "--json").document["alarms"]
    late = next(alarm for alarm in alarms if alarm["row"] > 300)
    assert abs(late["onset"] - 301) < 20


def test_a_line_without_an_end_is_left_until_it_has_one(tmp_path: Path) -> None:
    state = calibrated(tmp_path)
    losses = tmp_path / "losses.txt"
    losses.write_text("2.71\n2.6\n2.")
    result = watch(state, losses, "--json")
    assert result.document["rows"] == 2
    (note,) = result.document["notes"]
    assert note.startswith(f"{losses}:3: ")
    with losses.open("a") as stream:
        stream.write("65\n")
    document = watch(state, losses, "--json").document
    assert (document["first_row"], document["rows"], document["notes"]) == (3, 1, [])
    assert rows_of(state) == 3


def test_a_bad_row_keeps_what_was_before_it_and_is_met_again_until_it_is_mended(
    tmp_path: Path,
) -> None:
    state = calibrated(tmp_path)
    losses = tmp_path / "losses.jsonl"
    head, tail = objects(QUIET[:60]), objects(QUIET[60:])
    losses.write_text(head + '{"loss": NaN}\n' + tail)
    for _ in range(2):
        result = watch(state, losses)
        assert result.code == 1
        assert f"{losses}:61: nan" in result.err
        assert rows_of(state) == 60
    losses.write_text(head + tail)
    document = watch(state, losses, "--json").document
    assert (document["first_row"], document["rows"], document["notes"]) == (61, 140, [])


def test_a_state_that_another_process_changed_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_cl.drifting.watch import Watch

    state = calibrated(tmp_path)
    losses = tmp_path / "losses.jsonl"
    losses.write_text(objects(QUIET))
    theirs = state.read_text().replace('"rows": 0', '"rows": 7', 1)
    update = Watch.update

    def meanwhile(self: Watch, value: float):  # type: ignore[no-untyped-def]
        if self.rows == 100:
            state.write_text(theirs)
        return update(self, value)

    monkeypatch.setattr(Watch, "update", meanwhile)
    result = watch(state, losses)
    assert result.code == 1
    assert "changed by another process" in result.err
    assert state.read_text() == theirs


def test_a_state_that_cannot_be_written_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mergekit_cl.drifting.statefile as statefile

    state = calibrated(tmp_path)
    before = state.read_bytes()
    losses = tmp_path / "losses.jsonl"
    losses.write_text(objects(QUIET))

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statefile, "write_durably", full)
    result = watch(state, losses)
    assert result.code == 1
    assert "cannot be written" in result.err
    assert "No space left on device" in result.err
    assert state.read_bytes() == before


def test_a_state_behind_a_link_stays_behind_it(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    state = calibrated(tmp_path).rename(tmp_path / "kept/drift.json")
    link = tmp_path / "drift.json"
    link.symlink_to(state)
    losses = tmp_path / "losses.jsonl"
    losses.write_text(objects(QUIET))
    assert watch(link, losses).code == 0
    assert link.is_symlink()
    assert rows_of(state) == 200
