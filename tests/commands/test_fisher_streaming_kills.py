"""A streamed run that is killed outright, and what the same command makes of the rest."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mergekit_cl.estimating import streams
from tests.commands.models import SIDECAR
from tests.commands.running import clmerge

LINE = ("fisher", "tied", "--data", "rows.jsonl", "--batch-size", "2", "--stream-layers")
PARTIAL = Path("tied/clmerge/.fisher.safetensors.partial")
SLOW = """
import sys, time
import fisher.streamed
from mergekit_cl.cli import main
from mergekit_cl.estimating import streams
streams.IN_MEMORY = int(sys.argv[1])
for name in ("_hidden", "_finish"):
    def slow(self, *arguments, whole=getattr(fisher.streamed.Streamed, name), **more):
        time.sleep(0.1)
        return whole(self, *arguments, **more)
    setattr(fisher.streamed.Streamed, name, slow)
def begin(self, whole=fisher.streamed.Streamed.run):
    print("begun", flush=True)
    return whole(self)
fisher.streamed.Streamed.run = begin
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "in_memory",
    [
        pytest.param(0, id="in files"),
        pytest.param(2**28, id="in memory", marks=pytest.mark.long),
    ],
)
def test_a_run_killed_twice_at_any_moment_ends_in_the_same_bytes(
    models: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(streams, "IN_MEMORY", in_memory)
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    done = [killed(models, in_memory, chance.uniform(0, 0.6)) for _ in range(2)]
    said = f"seed {seed}, lines of the journal when killed: {done}"
    assert clmerge(*LINE).code == 0, said
    assert not (models / PARTIAL).exists(), said
    assert clmerge(*LINE, "-o", "whole.safetensors").code == 0
    found = (models / "tied" / SIDECAR).read_bytes()
    assert found == (models / "whole.safetensors").read_bytes(), said


def killed(models: Path, in_memory: int, seconds: float) -> int:
    """Kill a run some time after its passes began; gives how many steps were recorded then."""
    running = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(in_memory), *LINE],
        cwd=models,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    began = steps(models)
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n", running.communicate()
    time.sleep(seconds)
    assert running.poll() is None, running.communicate()
    running.kill()
    running.communicate()
    assert running.returncode == -9
    assert not (models / "tied" / SIDECAR).exists()
    assert steps(models) >= began
    return steps(models)


def steps(models: Path) -> int:
    """Lines of the journal of an unfinished run."""
    journal = models / PARTIAL / "journal.jsonl"
    return journal.read_text().count("\n") if journal.exists() else 0
