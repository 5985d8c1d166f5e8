"""`torchrun ... -m mergekit_cl fisher`: several processes, one sidecar, one voice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.models import distance, run, said_by, stored
from tests.commands.running import Result, clmerge
from tests.commands.trees import snapshot
from tests.processes import free_port

pytestmark = pytest.mark.slow

LINE = ("fisher", "a", "--data", "rows.jsonl", "--store-dtype", "float32", "--batch-size", "2")
PARTIAL = Path("a/clmerge/.fisher.safetensors.partial")
DISTURBED = """
import os, sys, time
import fisher.accumulator
from mergekit_cl.cli import main
whole = fisher.accumulator.Accumulator.add
def add(self, *arguments, **more):
    time.sleep(0.3)
    if os.environ["RANK"] == os.environ.get("FAILS"):
        raise fisher.accumulator.BatchError("this row is bad")
    return whole(self, *arguments, **more)
fisher.accumulator.Accumulator.add = add
main(sys.argv[1:])
"""


def launch(count: int, *line: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start torchrun as a user does, in a process group of its own."""
    launcher = ["--nproc-per-node", str(count), "--master-port", str(free_port())]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def end(running: subprocess.Popen[str]) -> Result:
    out, err = running.communicate(timeout=120)
    return Result(running.returncode, out, err)


def test_two_processes_write_the_sidecar_of_one_and_one_of_them_speaks(models: Path) -> None:
    line = (*LINE, "--base", "b")
    result = end(launch(2, "-m", "mergekit_cl", *line, "-o", "two.safetensors", "--json"))
    assert result.code == 0, result
    assert result.document["examples"] == 8
    assert result.err.count("trace") == 1
    assert result.err.count("output: ") == 1

    assert clmerge(*line, "-o", "one.safetensors").code == 0
    one, two = said_by(models / "one.safetensors"), said_by(models / "two.safetensors")
    assert distance(stored(models / "two.safetensors"), stored(models / "one.safetensors")) < 1e-5
    for name, expected in one.pop("tensors").items():
        found = two["tensors"][name]["standard_error"]
        assert found == pytest.approx(expected["standard_error"], rel=1e-5), name
    del two["tensors"]
    for said in (one, two):
        said["relative"] = said["sampling"].pop("relative_standard_error")
    for key in ("mean_nll", "trace_standard_error", "relative", "calibration", "calibrated"):
        assert two.pop(key) == pytest.approx(one.pop(key), rel=1e-6), key
    assert two == one


@pytest.mark.long
def test_a_target_is_refused_once_by_several_processes(models: Path) -> None:
    result = end(launch(2, "-m", "mergekit_cl", *LINE, "--target-se", "0.1"))
    assert result.code != 0
    assert result.err.count("error: one process alone can tell when it knows enough") == 1
    assert not (models / "a/clmerge").exists()


@pytest.mark.long
def test_what_is_up_to_date_is_said_once(models: Path) -> None:
    run(*LINE)
    again = end(launch(2, "-m", "mergekit_cl", *LINE))
    assert (again.code, again.err.count("up to date")) == (0, 1), again


@pytest.mark.long
def test_a_process_without_rows_takes_part(models: Path) -> None:
    line = (*LINE, "--samples", "1")
    assert end(launch(2, "-m", "mergekit_cl", *line, "-o", "two.safetensors")).code == 0
    run(*line, "-o", "one.safetensors")
    assert distance(stored(models / "two.safetensors"), stored(models / "one.safetensors")) < 1e-5


@pytest.mark.parametrize("fails", [pytest.param("0", marks=pytest.mark.long), "1"])
def test_an_error_of_one_process_ends_all_with_one_message(models: Path, fails: str) -> None:
    (models / "disturbed.py").write_text(DISTURBED)
    before = snapshot(models)
    began = time.monotonic()
    result = end(launch(2, "disturbed.py", *LINE, FAILS=fails))
    assert time.monotonic() - began < 60
    assert result.code == 1
    assert result.out == ""
    assert result.err.count("error: ") == 1, result.err
    assert "error: this row is bad" in result.err
    assert ("process 1: " in result.err) == (fails == "1")
    assert snapshot(models) == before


@pytest.mark.long
def test_wrong_usage_and_plans_are_said_once(models: Path) -> None:
    wrong = end(launch(2, "-m", "mergekit_cl", "fisher", "a"))
    assert wrong.err.count("error: missing option '--data'") == 1, wrong.err
    plan = end(launch(2, "-m", "mergekit_cl", *LINE, "--dry-run"))
    assert (plan.code, plan.out.count("fisher into ")) == (0, 1), plan


@pytest.mark.long
def test_a_missing_file_is_said_once(models: Path) -> None:
    before = snapshot(models)
    result = end(launch(2, "-m", "mergekit_cl", "fisher", "a", "--data", "none.jsonl", "--json"))
    assert result.code == 1
    assert json.loads(result.out)["error"]["message"] == "no such file or directory"
    assert snapshot(models) == before


def test_ctrl_c_keeps_every_process_s_sums_for_any_number_of_processes(models: Path) -> None:
    (models / "disturbed.py").write_text(DISTURBED)
    line = (*LINE[:-1], "1")
    running = launch(2, "disturbed.py", *line)
    until = time.monotonic() + 60
    while not (models / PARTIAL / "run.json").exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(running.pid, signal.SIGINT)  # what a terminal sends on Ctrl-C
    result = end(running)
    assert result.code != 0
    assert result.err.count("error: interrupted") == 1, result.err
    assert result.err.count("the same command continues") == 1
    kept = sorted(path.name for path in (models / PARTIAL).glob("state-*"))
    assert kept == ["state-00000.safetensors", "state-00001.safetensors"]

    continued = run(*line)  # one process
    assert continued["examples"] == 8
    assert not (models / PARTIAL).exists()
    run(*line, "-o", "whole.safetensors")
    found = stored(models / "a/clmerge/fisher.safetensors")
    assert distance(found, stored(models / "whole.safetensors")) < 1e-5
