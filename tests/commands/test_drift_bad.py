"""What `clmerge drift` refuses: one message each, with file and line, and nothing half done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.drifting import calibrated, objects, stable, table, watch
from tests.commands.running import clmerge, refused

HEAD = objects(stable(5))
BAD_ROWS = {
    "nan": ('{"loss": NaN}\n', ("no finite number", ":6: nan", "try: find out")),
    "infinity": ('{"loss": -Infinity}\n', ("no finite number", ":6: -inf")),
    "overflow": ('{"loss": 1e999}\n', ("no finite number", ":6: inf")),
    "huge": ('{"loss": 1' + "0" * 400 + "}\n", ("no finite number", ":6: 1")),
    "digits": ('{"loss": 1' + "0" * 5000 + "}\n", ("not JSON", ":6: ")),
    "null": ('{"loss": null}\n', ("'loss' is no number", ":6: null")),
    "text": ('{"loss": "2.5"}\n', ("'loss' is no number", ":6: '2.5'")),
    "bool": ('{"loss": true}\n', ("'loss' is no number", ":6: True")),
    "list": ('{"loss": [1]}\n', ("'loss' is no number", ":6: [1]")),
    "broken": ('{"loss": 2.5\n', ("not JSON", ":6: ", "column")),
    "number": ("2.5\n", ("not a JSON object", ":6: '2.5'")),
    "deep": ("[" * 100_000 + "\n", ("not JSON", ":6: ")),
    "bytes": ("\udcff\udcfe\n", ("not UTF-8", ":6: b'")),
}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, name: str) -> None:
    row, says = BAD_ROWS[name]
    bad = write(tmp_path / "bad.jsonl", HEAD + row)
    place = f"{bad}{next(part for part in says if part.startswith(':'))}"
    calibrate = ("drift", "calibrate", bad, "--arl", "100", "-o", tmp_path / "d.json")
    refused(*calibrate, unchanged=tmp_path, says=(*says, place))
    state = calibrated(tmp_path)
    result = watch(state, bad)
    assert result.code == 1
    assert all(part in result.err for part in (*says, place)), result.err
    assert result.out == ""


BAD_FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "empty": ("", ("a stream is empty", "bad")),
    "blank": ("\n  \n\n", ("a stream has no rows", "bad")),
    "array": ("[{}]\n", ("one JSON array", "bad:1", 'try: write {"loss": ...} a line')),
    "other key": (
        objects(stable(5), "los"),
        ("no column 'loss'", "bad:1", "'los'", "--column los"),
    ),
    "no key": (objects(stable(5), "q"), ("no column 'loss'", "'step', 'q'", "--column NAME")),
    "other header": (
        table(stable(5), "train_loss"),
        ("no column 'loss'", "bad:1: it has 'step', 'train_loss'", "--column train_loss"),
    ),
    "header alone": ("step,loss\n", ("a stream has no rows", "bad")),
    "empty cells": ("step,loss\n1,\n2,\n", ("no column 'loss'", "bad:2")),
    "twice": ("loss,loss\n1,2\n", ("more than one column 'loss'", "bad:1")),
    "cells": ("step,loss\n1,2,3\n", ("another number of cells", "bad:2: 3 cells, 2 columns")),
    "quotes": ('step,loss\n"1,2\n', ("table is broken", "bad:2")),
    "text cell": ("step,loss\n1,low\n", ("'loss' is no number", "bad:2: 'low'")),
    "nan cell": ("step,loss\n1,nan\n", ("no finite number", "bad:2: nan")),
    "text line": ("2.5\nlow\n", ("a line is no number", "bad:2: 'low'")),
    "underscore": ("2.5\n1_000\n", ("a line is no number", "bad:2: '1_000'")),
    "nan line": ("2.5\nNaN\n", ("no finite number", "bad:2: nan")),
    "binary": ("\x00\x01\n", ("no column 'loss'", "bad:1")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(tmp_path: Path, name: str) -> None:
    text, says = BAD_FILES[name]
    bad = write(tmp_path / "bad", text)
    calibrate = ("drift", "calibrate", bad, "--arl", "100", "-o", tmp_path / "d.json")
    refused(*calibrate, unchanged=tmp_path, says=says)
    state = calibrated(tmp_path)
    result = watch(state, bad)
    assert result.code == 1
    assert all(part in result.err for part in says), result.err


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (stable(49), ("too short to say anything", "49 rows, at least 50")),
        ([2.5] * 100, ("does not vary", "100 rows of 2.5")),
    ],
)
def test_a_period_that_says_nothing_is_refused(
    tmp_path: Path, values: list[float], says: tuple[str, ...]
) -> None:
    write(tmp_path / "s.jsonl", objects(values))
    line = ("drift", "calibrate", tmp_path / "s.jsonl", "--arl", "100", "-o", tmp_path / "d.json")
    refused(*line, unchanged=tmp_path, says=says)


def test_files_that_are_not_there_are_told_with_the_nearest(tmp_path: Path) -> None:
    state = calibrated(tmp_path)
    near = ("no such file", "stabel.jsonl", f"try: {tmp_path / 'stable.jsonl'}")
    line = ("drift", "calibrate", tmp_path / "stabel.jsonl", "--arl", "100")
    refused(*line, "-o", tmp_path / "d.json", unchanged=tmp_path, says=near)
    watching = ("drift", "watch", tmp_path / "stabel.jsonl", "--state", state)
    refused(*watching, unchanged=tmp_path, says=near)
    losses = tmp_path / "stable.jsonl"
    for typed, says in (
        ("drfit.json", f"try: {state}"),
        ("other", "try: clmerge drift calibrate STABLE --arl N makes one"),
    ):
        line = ("drift", "watch", losses, "--state", tmp_path / typed)
        refused(*line, unchanged=tmp_path, says=("there is no drift state", typed, says))
    refused(
        *("drift", "watch", tmp_path, "--state", state),
        unchanged=tmp_path,
        says=("cannot be read",),
    )
    refused(
        *("drift", "watch", losses, "--state", tmp_path),
        unchanged=tmp_path,
        says=("cannot be read", "Is a directory"),
    )


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    state = calibrated(tmp_path)
    (tmp_path / "notes.json").write_text('{"format": "mine"}')
    line = ("drift", "calibrate", tmp_path / "stable.jsonl", "--arl", "100", "-o")
    for output, says in (
        (state, ("the output exists", "try: --force")),
        (tmp_path / "notes.json", ("is no drift state",)),
        (tmp_path / "stable.jsonl", ("is no drift state",)),
        (tmp_path, ("is no drift state",)),
        (tmp_path / "nowhere/d.json", ("folder does not exist",)),
    ):
        refused(*line, output, unchanged=tmp_path, says=says)
    for output in (tmp_path / "notes.json", tmp_path / "stable.jsonl", tmp_path):
        refused(*line, output, "--force", unchanged=tmp_path, says=("is no drift state",))


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.pop(key)


def with_(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({key: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_("format", "clmerge.drift/9"), ("known format", "clmerge.drift/9")),
        (without("format"), ("known format", "None")),
        (without("column"), ("not what was stored", "column is not there")),
        (without("seen"), ("not what was stored", "seen is not there")),
        (with_("seen", {"rows": 3}), ("not what was stored", "seen.name is not there")),
        (with_("detector", {}), ("not what was stored", "detector.delta is not there")),
        (with_("rows", "3"), ("not what was stored", "rows = '3'")),
        (with_("more", 1), ("not what was stored", "more is unknown")),
    ],
)
def test_a_state_that_was_changed_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], says: tuple[str, ...]
) -> None:
    state = calibrated(tmp_path)
    content = json.loads(state.read_text())
    change(content)
    state.write_text(json.dumps(content))
    line = ("drift", "watch", tmp_path / "stable.jsonl", "--state", state)
    refused(*line, unchanged=tmp_path, says=(*says, str(state)))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '"a"', "NaN"])
def test_what_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    calibrated(tmp_path)
    (tmp_path / "s.json").write_text(text)
    line = ("drift", "watch", tmp_path / "stable.jsonl", "--state", tmp_path / "s.json")
    refused(*line, unchanged=tmp_path, says=("not a drift state", "s.json"))


def test_the_state_of_another_column_is_refused(tmp_path: Path) -> None:
    state = calibrated(tmp_path)
    line = ("drift", "watch", tmp_path / "stable.jsonl", "--state", state, "--column", "step")
    says = ("another column", "'loss'", "'step'", "--column step")
    refused(*line, unchanged=tmp_path, says=says)


def test_plain_numbers_have_no_column(tmp_path: Path) -> None:
    write(tmp_path / "s.txt", "1.5\n2.5\n" * 100)
    line = ("drift", "calibrate", tmp_path / "s.txt", "--arl", "100", "--column", "loss")
    says = ("plain numbers have no column 'loss'", "s.txt:1", "leave --column out")
    refused(*line, "-o", tmp_path / "d.json", unchanged=tmp_path, says=says)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("drift", ("missing command", "clmerge drift --help")),
        ("drift wach", ("no such command 'wach'", "clmerge drift watch")),
        ("drift watch", ("missing argument 'LOSSES'", "clmerge drift watch --help")),
        ("drift watch a --stat b", ("no such option '--stat'", "--state")),
        ("drift calibrate a", ("missing option '--arl'", "clmerge drift calibrate --help")),
        ("drift calibrate a --arl 9", ("9 is not in the range x>=10", "--arl")),
        ("drift calibrate a --arl 10 --delta 0", ("0.0 is not in the range x>0", "--delta")),
        ("drift calibrate a --arl 10 --detector kswin", ("'kswin' is not one of", "adwin")),
        ("drift calibrate a --arl 10 --detector adwin --delta 1", ("adwin has no delta", "out")),
    ],
)
def test_wrong_usage(line: str, says: tuple[str, ...]) -> None:
    result = clmerge(*line.split())
    assert result.code == 2
    assert all(part in result.err for part in says), result.err
