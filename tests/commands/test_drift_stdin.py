"""`clmerge drift watch -`: rows as they come, alarms at once, Ctrl-C that loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.drifting import calibrated, drifting, numbers, objects, stable, table, watch

PATIENCE = 60.0


class Live:
    """A watch on a pipe that stays open."""

    def __init__(self, state: Path, *more: str) -> None:
        self.state = state
        line = ["drift", "watch", "-", "--state", str(state), *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mergekit_cl", *line],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def send(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def stored(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.state.read_text())
        return found

    def wait_for_rows(self, rows: int) -> None:
        end = time.monotonic() + PATIENCE
        while self.stored()["rows"] != rows:
            assert time.monotonic() < end, self.stored()["rows"]
            time.sleep(0.02)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return calibrated(tmp_path)


@pytest.fixture
def live(state: Path) -> Iterator[Live]:
    started = Live(state, "--all")
    yield started
    started.process.kill()
    started.process.communicate()


def alarms_of_the_file(state: Path, folder: Path, values: list[float]) -> list[dict[str, Any]]:
    """What a watch of a file with these values tells; the state stays as it was."""
    before = state.read_bytes()
    (folder / "same.jsonl").write_text(objects(values))
    document = watch(state, folder / "same.jsonl", "--all", "--json").document
    state.write_bytes(before)
    found: list[dict[str, Any]] = document["alarms"]
    return found


def test_an_alarm_is_printed_at_once_and_rows_are_stored_while_the_pipe_is_open(
    live: Live, state: Path, tmp_path: Path
) -> None:
    values = drifting()
    (first, *_) = alarms_of_the_file(state, tmp_path, values)
    text = objects(values).splitlines(keepends=True)
    live.send("".join(text[: first["row"] - 1]))
    live.wait_for_rows(first["row"] - 1)
    live.send(text[first["row"] - 1][:8])
    live.send(text[first["row"] - 1][8:])
    assert live.line().startswith(f"stdin:{first['row']}: loss {first['value']:.6g}: row ")
    live.wait_for_rows(first["row"])
    assert live.process.poll() is None
    live.process.send_signal(signal.SIGINT)
    code, out, err = live.end()
    assert (code, out) == (130, "")
    assert err == f"stdin: {first['row']} new rows (1 to {first['row']}): 1 alarm\n"


def test_an_interrupted_watch_goes_on_as_if_it_had_not_been(
    live: Live, state: Path, tmp_path: Path
) -> None:
    values = drifting()
    told = alarms_of_the_file(state, tmp_path, values)
    live.send(objects(values[:200]))
    live.wait_for_rows(200)
    live.process.send_signal(signal.SIGTERM)
    assert live.end()[0] == 143
    second = Live(state, "--all", "--json")
    second.send(objects(values[200:]))
    second.process.stdin.close()  # type: ignore[union-attr]
    second.process.stdin = None
    code, out, _ = second.end()
    document = json.loads(out)
    keys = ("row", "value", "statistic", "onset")
    # Rows of stdin are counted over all that the state has watched.
    assert [[alarm[key] for key in keys] for alarm in document["alarms"]] == [
        [alarm[key] for key in keys] for alarm in told
    ]
    assert (code, document["first_row"], document["rows"]) == (12, 201, 200)


@pytest.mark.parametrize("form", [objects, table, numbers])
def test_a_pipe_that_ends_is_read_to_its_last_line(state: Path, form) -> None:  # type: ignore[no-untyped-def]
    live = Live(state, "--json")
    out, _ = live.process.communicate(form(stable(100, 8)).rstrip("\n").encode(), PATIENCE)
    document = json.loads(out)
    assert (document["rows"], document["path"]) == (100, "stdin")
    assert live.process.returncode == 0
    assert live.stored()["rows"] == 100


def test_nothing_on_the_pipe_is_no_alarm(state: Path) -> None:
    live = Live(state, "--json")
    out, _ = live.process.communicate(b"", PATIENCE)
    assert live.process.returncode == 0
    assert json.loads(out)["rows"] == 0


def test_the_first_alarm_ends_it_without_all(state: Path, tmp_path: Path) -> None:
    values = drifting()
    (first, *_) = alarms_of_the_file(state, tmp_path, values)
    live = Live(state, "--json")
    live.send(objects(values))
    code, out, _ = live.end()
    assert code == 12
    assert [alarm["row"] for alarm in json.loads(out)["alarms"]] == [first["row"]]
    assert live.stored()["rows"] == first["row"]


def test_a_bad_row_keeps_those_before_it(state: Path) -> None:
    live = Live(state)
    live.send(objects(stable(10, 2)) + "{\n" + objects(stable(10, 2)))
    code, out, err = live.end()
    assert (code, out) == (1, "")
    assert err.splitlines()[:1] == ["error: a line is not JSON"]
    assert "stdin:11: " in err
    assert live.stored()["rows"] == 10


def test_a_column_that_no_row_has_is_told_while_the_pipe_is_open(live: Live) -> None:
    live.send(objects(stable(3, 2), "los"))
    assert live.process.stderr is not None
    told = live.process.stderr.readline().decode()
    assert told == "warning: stdin:1: no 'loss' so far; it has 'step', 'los'\n"
    os.kill(live.process.pid, signal.SIGINT)
    assert live.end()[0] == 130
