"""`clmerge drift`: a stable period, a stream, an alarm."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mergekit_cl.drifting.calibrate import calibrate
from tests.commands.drifting import (
    SHIFT_AT,
    calibrated,
    drifting,
    numbers,
    objects,
    stable,
    table,
    watch,
)
from tests.commands.running import clmerge

DETECTORS = ("page-hinkley", "cusum", "adwin")


def expected(detector: str) -> list[tuple[int, float]]:
    """(row, value) of every alarm that the library raises on `drifting`."""
    watched = calibrate(stable(), 2000, detector)  # type: ignore[arg-type]
    found = [watched.update(value) for value in drifting()]
    return [(alarm.row, alarm.value) for alarm in found if alarm is not None]


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_watch_tells_the_alarms_of_the_library(tmp_path: Path, detector: str) -> None:
    state = calibrated(tmp_path, "--detector", detector)
    (tmp_path / "losses.jsonl").write_text(objects(drifting()))
    result = watch(state, tmp_path / "losses.jsonl", "--all", "--json")
    assert result.code == 12
    alarms = result.document["alarms"]
    assert [(alarm["row"], alarm["value"]) for alarm in alarms] == expected(detector)
    assert all(alarm["line"] == alarm["row"] for alarm in alarms)
    first = next(alarm for alarm in alarms if alarm["row"] > SHIFT_AT)
    assert first["direction"] == "up"
    assert abs(first["onset"] - SHIFT_AT) < 20


def test_the_first_alarm_ends_a_watch_and_the_next_goes_on_behind_it(tmp_path: Path) -> None:
    state = calibrated(tmp_path, "--detector", "cusum")
    losses = tmp_path / "losses.jsonl"
    losses.write_text(objects(drifting()))
    rows = [row for row, _ in expected("cusum")]
    assert len(rows) > 2
    begin = 1
    for row in rows:
        result = watch(state, losses, "--json")
        assert result.code == 12
        document = result.document
        assert [alarm["row"] for alarm in document["alarms"]] == [row]
        assert (document["first_row"], document["rows"]) == (begin, row - begin + 1)
        begin = row + 1
    quiet = watch(state, losses, "--json")
    assert quiet.code == 0
    assert (quiet.document["state"], quiet.document["alarms"]) == ("no alarm", [])


def test_an_alarm_is_one_line_that_begins_with_file_and_line(tmp_path: Path) -> None:
    state = calibrated(tmp_path)
    losses = tmp_path / "losses.jsonl"
    losses.write_text("\n" + objects(drifting()))
    result = watch(state, losses)
    row, value = expected("page-hinkley")[0]
    (line,) = result.out.splitlines()
    assert line.startswith(f"{losses}:{row + 1}: loss {value:.6g}: row {row}, up, statistic ")
    assert re.search(r"statistic ([\d.]+) > ([\d.]+), since about row \d+$", line)
    assert result.err == f"{losses}: {row} new rows (1 to {row}): 1 alarm\n"
    assert watch(state, losses, "--quiet").err == ""


def test_every_format_gives_the_same_alarms(tmp_path: Path) -> None:
    values = drifting()
    texts = {
        "a.jsonl": objects(values),
        "a.log": table(values),
        "a.csv": table(values, separator="\t").replace("\n", "\r\n"),
        "a.txt": numbers(values),
        "bom.csv": "\ufeff" + table(values),
    }
    found = {}
    for name, text in texts.items():
        state = calibrated(tmp_path)
        (tmp_path / name).write_text(text, newline="")
        document = watch(state, tmp_path / name, "--all", "--json").document
        found[name] = [(alarm["row"], alarm["statistic"]) for alarm in document["alarms"]]
        state.unlink()
    assert found["a.jsonl"]
    assert all(alarms == found["a.jsonl"] for alarms in found.values())


def test_a_stable_period_is_read_in_every_format(tmp_path: Path) -> None:
    states = []
    for text in (objects(stable()), table(stable()), numbers(stable())):
        path = calibrated(tmp_path, text=text)
        states.append(json.loads(path.read_text()))
        path.unlink()
    assert [state.pop("column") for state in states] == ["loss", "loss", None]
    assert states[0] == states[1] == states[2]


def test_another_column_is_watched_where_it_was_calibrated_on(tmp_path: Path) -> None:
    state = calibrated(tmp_path, "--column", "eval", text=objects(stable(), "eval"))
    losses = tmp_path / "losses.jsonl"
    losses.write_text(objects(drifting(), "eval"))
    document = watch(state, losses, "--json").document
    assert document["column"] == "eval"
    assert document["state"] == "alarm"
    assert watch(state, losses, "--column", "eval").code == 0


def test_rows_of_other_kinds_are_passed_over_and_counted(tmp_path: Path) -> None:
    state = calibrated(tmp_path)
    losses = tmp_path / "losses.jsonl"
    mixed = [
        line + ('{"eval_loss": 9.0}\n' if k % 50 == 0 else "")
        for k, line in enumerate(objects(drifting()).splitlines(keepends=True))
    ]
    losses.write_text('{"run": "a"}\n' + "".join(mixed))
    document = watch(state, losses, "--all", "--json").document
    assert (document["rows"], document["lacking"]) == (400, 9)
    alarms = document["alarms"]
    assert [alarm["row"] for alarm in alarms] == [row for row, _ in expected("page-hinkley")]
    for alarm in alarms:
        read = json.loads(losses.read_text().splitlines()[alarm["line"] - 1])
        assert read["loss"] == alarm["value"]


def test_calibrating_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "stable.jsonl").write_text(objects(stable()))
    line = ("drift", "calibrate", tmp_path / "stable.jsonl", "--arl", "500")
    result = clmerge(*line, "-o", tmp_path / "a.json", "--json")
    assert (result.code, result.err.splitlines()[1:2]) == (
        0,
        ["stable period: 1,000 rows, mean 2.689, standard deviation 0.197"],
    )
    document = result.document
    stored = json.loads((tmp_path / "a.json").read_text())["calibration"]
    assert {key: document[key] for key in stored} == stored
    assert document["notes"] == []
    told = clmerge(*line, "-o", tmp_path / "b.json")
    assert told.out == ""
    assert f"next: clmerge drift watch LOSSES --state {tmp_path / 'b.json'}" in told.err
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize(
    ("values", "arl", "says"),
    [
        (stable(200), "5000", "speaks for a false alarm every 200 rows at most, not every 5,000"),
        (
            [x - 0.001 * k for k, x in enumerate(stable(1000))],
            "500",
            "the stable period is not stable: it falls from 2.6",
        ),
        (
            [x + 0.6 * (k // 100 % 2) for k, x in enumerate(stable(1000))],
            "1000",
            "of them independent, speaks for",
        ),
    ],
)
def test_a_doubtful_stable_period_is_told(
    tmp_path: Path, values: list[float], arl: str, says: str
) -> None:
    (tmp_path / "s.txt").write_text(numbers(values))
    line = ("drift", "calibrate", tmp_path / "s.txt", "--arl", arl, "-o", tmp_path / "d.json")
    result = clmerge(*line, "--json")
    assert result.code == 0
    assert any(says in note for note in result.document["notes"]), result
    assert "warning: " in result.err


def test_a_state_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    state = calibrated(tmp_path)
    (tmp_path / "losses.jsonl").write_text(objects(stable(100, 3)))
    watch(state, tmp_path / "losses.jsonl")
    before = state.read_bytes()
    line = ("drift", "calibrate", tmp_path / "stable.jsonl", "--arl", "2000", "-o", state)
    assert clmerge(*line).code == 1
    assert state.read_bytes() == before
    assert clmerge(*line, "--force").code == 0
    assert json.loads(state.read_text())["rows"] == 0
