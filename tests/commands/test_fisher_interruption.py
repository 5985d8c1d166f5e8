"""`clmerge fisher` that stops half-way: what is summed is kept, the same command ends the same."""

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

import fisher.accumulator
from tests.commands.models import SIDECAR, said_by
from tests.commands.running import clmerge, failure_lines, refused
from tests.commands.trees import snapshot

LINE = ("fisher", "a", "--data", "rows.jsonl", "--batch-size", "1")
PARTIAL = Path("a/clmerge/.fisher.safetensors.partial")
SLOW = """
import sys, time
import fisher.accumulator
from mergekit_cl.cli import main
whole = fisher.accumulator.Accumulator.add
def slow(*arguments, **more):
    time.sleep(0.3)
    return whole(*arguments, **more)
fisher.accumulator.Accumulator.add = slow
main(sys.argv[1:])
"""


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """Send this process a signal during a batch; gives the rows of each batch that was added."""
    whole = fisher.accumulator.Accumulator.add
    added: list[int] = []
    fired: list[int] = []

    def arm(count: int, number: int) -> list[int]:
        def add(self: Any, batch: Any, **more: Any) -> None:
            whole(self, batch, **more)
            added.append(len(batch))
            if len(added) == count and not fired:
                fired.append(number)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(fisher.accumulator.Accumulator, "add", add)
        return added

    return arm


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_estimate_is_continued_to_the_same_bytes(
    models: Path, stop_after: Any, number: int, code: int
) -> None:
    before = snapshot(models)
    added = stop_after(3, number)
    result = clmerge(*LINE)
    assert result.code == code
    lines = failure_lines_after_notes(result)
    assert lines[0] == "error: interrupted"
    assert "the same command continues" in lines[1]
    assert str(PARTIAL) in lines[1]
    assert not (models / "a" / SIDECAR).exists()
    after = snapshot(models)
    assert {path: after[path] for path in before} == before

    assert len(added) == 3
    added.clear()
    assert clmerge(*LINE).code == 0
    assert len(added) == 8 - 3
    assert not PARTIAL.exists()
    assert clmerge(*LINE, "-o", "whole.safetensors").code == 0
    assert (models / "a" / SIDECAR).read_bytes() == (models / "whole.safetensors").read_bytes()


def failure_lines_after_notes(result: Any) -> list[str]:
    """The lines of the error; what was told of the run before it comes first."""
    lines: list[str] = result.err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    return lines[start:]


def test_other_options_or_data_in_its_place_are_refused_until_restart(
    models: Path, stop_after: Any
) -> None:
    stop_after(3, signal.SIGTERM)
    assert clmerge(*LINE).code == 143
    says = ("another command was interrupted", "--restart")
    refused(*LINE, "--seed", "1", unchanged=models, says=says)
    refused(*LINE[:-1], "2", unchanged=models, says=says)
    shutil.copy("b/model.safetensors", "a/model.safetensors")
    refused(*LINE, unchanged=models, says=says)
    assert clmerge(*LINE, "--restart").code == 0
    assert said_by(models / "a" / SIDECAR)["examples"] == 8


def test_an_interruption_before_the_first_batch_leaves_no_error_behind(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mergekit_cl.training.model

    before = snapshot(models)

    def build(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(mergekit_cl.training.model, "build", build)
        result = clmerge(*LINE)
    assert result.code == 130
    assert failure_lines(result) == ["error: interrupted", "  try: give the same command again"]
    assert snapshot(models) == before


def test_a_real_process_stops_at_a_real_signal_keeps_its_place_and_is_continued(
    models: Path,
) -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", SLOW, *LINE],
        cwd=models,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 60
    while not (models / PARTIAL / "run.json").exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    second = clmerge(*LINE)
    assert second.code == 1
    assert failure_lines(second)[0] == "error: another process is writing this output"
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (143, "")
    assert "error: interrupted" in err
    assert "Traceback" not in err
    assert clmerge(*LINE).code == 0
    assert clmerge(*LINE, "-o", "whole.safetensors").code == 0
    assert (models / "a" / SIDECAR).read_bytes() == (models / "whole.safetensors").read_bytes()
