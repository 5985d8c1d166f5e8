"""Runs that stop half-way: what is done is kept, and the same command ends with the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mergekit_cl.block
from tests.commands.checkpoints import sidecar, weights
from tests.commands.running import clmerge, failure_lines, refused
from tests.commands.trees import same_but_for_cost, snapshot

# Real processes make whole pages.
pytestmark = pytest.mark.usefixtures("a_span_for_each_tensor", "whole_pages")

SHARDS = ("--shard-size", "600")  # a file for each tensor of the small checkpoints but the last
SLOW = """
import sys, time
import mergekit_cl.block, mergekit_cl.stream
from mergekit_cl.cli import main
mergekit_cl.stream.gather = lambda steps, most: iter(steps)
whole = mergekit_cl.block.BlockWorker.run
def slow(*arguments):
    time.sleep(0.3)
    return whole(*arguments)
mergekit_cl.block.BlockWorker.run = slow
main(sys.argv[1:])
"""


def start_slowly(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """A real process whose merge takes 0.3 s for every tensor."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        cwd=place,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def first_shard_is_done(output: Path) -> bool:
    journal = output.parent / f".{output.name}.partial" / "journal.jsonl"
    return journal.exists() and journal.read_bytes().count(b"\n") > 0


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[str]]:
    """Send this process a signal when so many tensors are done; gives the list of those started."""
    whole = mergekit_cl.block.BlockWorker.run
    started: list[str] = []

    def arm(count: int, number: int) -> list[str]:
        def run(self: Any, step: Any, *arguments: Any) -> Any:
            started.append(step.name)
            if len(started) == count + 1:
                os.kill(os.getpid(), number)
                time.sleep(0.2)  # the main thread takes the signal meanwhile
            return whole(self, step, *arguments)

        monkeypatch.setattr(mergekit_cl.block.BlockWorker, "run", run)
        return started

    return arm


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_merge_is_kept_and_the_same_command_ends_with_the_same_bytes(
    place: Path, stop_after: Any, command: str, number: int, code: int
) -> None:
    before = snapshot(place)
    line = (command, "a", "b", *SHARDS, "--threads", "1")
    started = stop_after(2, number)
    result = clmerge(*line)
    assert result.code == code
    lines = failure_lines(result)
    assert lines[0] == "error: interrupted"
    assert "the same command continues" in lines[1]
    assert ".merged.partial" in lines[1]
    assert not (place / "merged").exists()
    assert (place / ".merged.partial").is_dir()
    after = snapshot(place)
    assert {path: after[path] for path in before} == before

    done = set(started[:2])
    started.clear()
    stop_after(99, number)
    finished = clmerge(*line, "--json")
    assert finished.code == 0
    assert finished.document["state"] == "published"
    assert done.isdisjoint(started)
    assert not (place / ".merged.partial").exists()
    assert clmerge(*line, "-o", "whole").code == 0
    assert same_but_for_cost(place / "merged", place / "whole")


def test_json_tells_of_an_interruption(place: Path, stop_after: Any) -> None:
    stop_after(1, signal.SIGTERM)
    result = clmerge("linear-merge", "a", "b", "--json")
    assert (result.code, result.error["code"]) == (143, "interrupted")
    assert "same command continues" in result.error["hint"]


def test_another_command_in_the_place_of_an_unfinished_one_is_refused_until_restart(
    place: Path, stop_after: Any
) -> None:
    stop_after(2, signal.SIGINT)
    assert clmerge("linear-merge", "a", "b", *SHARDS, "--threads", "1").code == 130
    other = ("linear-merge", "a", "b", *SHARDS, "--weights", "1,3")
    says = ("another command was interrupted", ".merged.partial: its options differ", "--restart")
    refused(*other, unchanged=place, says=says)
    says = ("another command was interrupted", "its command, options differ", "--restart")
    refused("fisher-merge", "a", "b", unchanged=place, says=says)
    assert clmerge(*other, "--restart").code == 0
    assert clmerge(*other, "-o", "whole").code == 0
    assert same_but_for_cost(place / "merged", place / "whole")


def test_a_run_whose_input_has_changed_since_is_not_continued(place: Path, stop_after: Any) -> None:
    line = ("linear-merge", "a", "b", *SHARDS, "--threads", "1")
    stop_after(2, signal.SIGINT)
    assert clmerge(*line).code == 130
    save_file(weights(7), place / "b" / "model.safetensors", metadata={"format": "pt"})
    sidecar(place / "b", 2)
    refused(*line, unchanged=place, says=("inputs differ", "--restart"))
    assert clmerge(*line, "--restart").code == 0


def test_an_unfinished_run_may_continue_with_other_threads_and_memory(
    place: Path, stop_after: Any
) -> None:
    line = ("linear-merge", "a", "b", *SHARDS)
    stop_after(2, signal.SIGINT)
    assert clmerge(*line, "--threads", "1").code == 130
    assert clmerge(*line, "--threads", "3", "--memory", "1GB").code == 0


def test_the_old_output_stays_while_its_replacement_is_unfinished(
    place: Path, stop_after: Any
) -> None:
    assert clmerge("linear-merge", "a", "b").code == 0
    old = snapshot(place / "merged")
    line = ("linear-merge", "a", "b", "--weights", "1,3", "--force")
    stop_after(1, signal.SIGTERM)
    assert clmerge(*line, "--threads", "1").code == 143
    assert snapshot(place / "merged") == old
    assert clmerge(*line).code == 0
    assert snapshot(place / "merged") != old


def test_a_run_that_fails_after_an_interruption_removes_the_temporary_place(
    place: Path, stop_after: Any
) -> None:
    tensors = weights(3)
    tensors["model.norm.weight"][0] = float("nan")
    (place / "c").mkdir()
    save_file(tensors, place / "c" / "model.safetensors")
    line = ("linear-merge", "a", "c", *SHARDS, "--threads", "1")
    before = snapshot(place)
    stop_after(1, signal.SIGINT)
    assert clmerge(*line).code == 130
    result = clmerge(*line)
    assert result.code == 1
    assert "NaN" in result.err
    assert snapshot(place) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_process_stops_at_a_real_signal_and_is_continued(
    place: Path, number: int, code: int
) -> None:
    line = ("linear-merge", "a", "b", *SHARDS, "--threads", "1")
    running = start_slowly(place, *line)
    wait_for(lambda: first_shard_is_done(place / "merged"), running)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert out == ""
    assert "error: interrupted" in err
    assert "Traceback" not in err
    assert not (place / "merged").exists()
    assert clmerge(*line).code == 0
    assert clmerge(*line, "-o", "whole").code == 0
    assert same_but_for_cost(place / "merged", place / "whole")


def test_a_killed_process_is_continued_and_a_running_one_is_left_alone(place: Path) -> None:
    line = ("fisher-merge", "a", "b", *SHARDS, "--threads", "1")
    running = start_slowly(place, *line)
    wait_for(lambda: first_shard_is_done(place / "merged"), running)
    second = clmerge(*line)
    assert second.code == 1
    assert failure_lines(second)[0] == "error: another process is writing this output"
    assert failure_lines(second)[1] == f"  {place / 'merged'}"
    running.kill()
    running.communicate(timeout=60)
    assert clmerge(*line).code == 0
    assert clmerge(*line, "-o", "whole").code == 0
    assert same_but_for_cost(place / "merged", place / "whole")


def test_a_place_torn_by_a_power_loss_is_continued(place: Path, stop_after: Any) -> None:
    line = ("linear-merge", "a", "b", *SHARDS, "--threads", "1")
    stop_after(3, signal.SIGINT)
    assert clmerge(*line).code == 130
    journal = place / ".merged.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert clmerge(*line).code == 0
    assert clmerge(*line, "-o", "whole").code == 0
    assert same_but_for_cost(place / "merged", place / "whole")


def test_an_interrupted_fisher_merge_still_refuses_a_stale_sidecar(
    place: Path, stop_after: Any
) -> None:
    """A tensor that was checked before the interruption need not be read again; others must."""
    tensors = weights(2)
    tensors["model.norm.weight"] = torch.ones(8)
    save_file(tensors, place / "b" / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(place / "a" / "clmerge")
    sidecar(place / "a", 1)
    before = snapshot(place)
    line = ("fisher-merge", "a", "b", *SHARDS, "--threads", "1")
    stop_after(1, signal.SIGINT)
    assert clmerge(*line).code == 130
    result = clmerge(*line)
    assert result.code == 1
    assert "model.norm.weight of b has changed since" in result.err
    assert snapshot(place) == before
