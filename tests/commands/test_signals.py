"""Real processes: two on one output, one that dies, and signals at moments nobody chose."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from random import Random

import pytest

from tests.commands.running import clmerge, failure_lines, process, start
from tests.commands.test_interruption import (
    SHARDS,
    first_shard_is_done,
    start_slowly,
    wait_for,
)
from tests.commands.trees import same_but_for_cost, snapshot

pytestmark = pytest.mark.usefixtures("whole_pages")  # a process makes them

LINE = ("linear-merge", "a", "b", *SHARDS, "--threads", "1")


def check_continues(place: Path) -> None:
    """The same command ends with the bytes of an undisturbed run, and leaves nothing else."""
    assert clmerge(*LINE).code == 0
    assert clmerge(*LINE, "-o", "whole").code == 0
    assert same_but_for_cost(place / "merged", place / "whole")
    assert not list(place.glob(".*"))


def test_of_two_processes_the_second_is_refused_and_the_first_not_disturbed(place: Path) -> None:
    first = start_slowly(place, *LINE)
    wait_for(lambda: first_shard_is_done(place / "merged"), first)
    first.send_signal(signal.SIGSTOP)  # it is slow, not gone
    for more in ((), ("--restart",)):
        second = process(*LINE, *more, cwd=place)
        assert second.code == 1
        assert failure_lines(second)[0] == "error: another process is writing this output"
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=60)
    assert first.returncode == 0
    check_continues(place)


def test_a_killed_process_leaves_no_lock(place: Path) -> None:
    first = start_slowly(place, *LINE)
    wait_for(lambda: first_shard_is_done(place / "merged"), first)
    first.kill()
    first.communicate(timeout=60)
    assert (place / ".merged.partial/lock").exists()
    second = process(*LINE, cwd=place)
    assert second.code == 0, second
    check_continues(place)


def test_a_second_interruption_while_the_first_is_acted_on_keeps_the_work_too(place: Path) -> None:
    running = start_slowly(place, *LINE)
    wait_for(lambda: first_shard_is_done(place / "merged"), running)
    running.send_signal(signal.SIGINT)
    time.sleep(0.05)  # a worker is still in its tensor, which takes 0.3 s
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert "error: interrupted" in err
    assert "Traceback" not in err
    assert (place / ".merged.partial/run.json").exists()
    check_continues(place)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_any_moment_ends_the_command_with_its_code(
    place: Path, number: int, code: int, seed: int
) -> None:
    before = snapshot(place)
    running = start_slowly(place, *LINE)
    wait_for((place / ".merged.partial/run.json").exists, running)
    time.sleep(Random(seed).uniform(0, 0.8))
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert "the same command continues" in err
    assert "Traceback" not in err
    after = snapshot(place)
    assert {path: after[path] for path in before} == before
    check_continues(place)


def test_a_signal_before_anything_is_written_leaves_nothing(place: Path) -> None:
    before = snapshot(place)
    running: subprocess.Popen[str] = start(*LINE, cwd=place)
    time.sleep(0.5)  # torch is being loaded
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    if running.returncode not in (0, 143):
        assert running.returncode == -signal.SIGTERM  # before the command line was looked at
    if not (place / ".merged.partial").exists() and not (place / "merged").exists():
        assert snapshot(place) == before
    check_continues(place)
