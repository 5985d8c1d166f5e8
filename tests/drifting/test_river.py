"""Alarms beside those of river's detectors, which share neither code nor language with ours."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.fetch import FetchError, fetch
from mergekit_cl.decide.adwin import Adwin
from mergekit_cl.decide.page_hinkley import PageHinkley

ROOT = Path(__file__).parent.parent.parent
SEEDS = range(12)


@pytest.fixture(scope="module")
def river() -> Path:
    """The unpacked wheel; it is built for one Python on one kind of machine."""
    if sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64":
        pytest.skip("river's compiled part was fetched for Python 3.11 on x86-64")
    try:
        return fetch("river")
    except FetchError as error:
        pytest.skip(str(error))


def alarms(river: Path, jobs: list[dict[str, Any]]) -> list[list[int]]:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/river_alarms.py", river],
        input="".join(json.dumps(job) + "\n" for job in jobs),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def stream(seed: int) -> NDArray[np.float64]:
    """Levels that jump at random rows, under noise of a random size."""
    generator = np.random.default_rng(seed)
    levels = np.repeat(generator.uniform(-2, 2, size=8), generator.integers(40, 200, size=8))
    return levels + generator.uniform(0.2, 1.5) * generator.standard_normal(len(levels))


def test_page_hinkley_alarms_at_the_same_rows(river: Path) -> None:
    # alpha: river can let old sums fade; 1 is the test as Page wrote it.
    settings = [(0.1, 5.0), (0.5, 8.0), (0.005, 50.0)]
    jobs = [
        {
            "detector": "PageHinkley",
            "options": {"delta": delta, "threshold": threshold, "alpha": 1.0},
            "values": stream(seed).tolist(),
        }
        for seed in SEEDS
        for delta, threshold in settings
    ]
    total = 0
    for job, theirs in zip(jobs, alarms(river, jobs), strict=True):
        detector = PageHinkley(job["options"]["delta"], job["options"]["threshold"])
        ours = [row for row, x in enumerate(job["values"], 1) if detector.update(x) is not None]
        assert ours == theirs
        total += len(ours)
    assert total > 80


@pytest.mark.parametrize("every", [1, 8, 32])
def test_adwin_alarms_at_the_same_rows(river: Path, every: int) -> None:
    # river adds min_window_length - 1 to n0 and n1 in 1/m, where the paper has nothing: with a
    # shortest part of one row both say the same. Both start over after an alarm.
    jobs = [
        {
            "detector": "ADWIN",
            "options": {
                "delta": delta,
                "clock": every,
                "min_window_length": 1,
                "grace_period": 0,
            },
            "values": stream(seed).tolist(),
        }
        for seed in SEEDS
        for delta in (0.002, 0.3)
    ]
    total = 0
    for job, theirs in zip(jobs, alarms(river, jobs), strict=True):
        detector = Adwin(log(2 / job["options"]["delta"]), every=every, shortest=1)
        ours = [row for row, x in enumerate(job["values"], 1) if detector.update(x) is not None]
        assert ours == theirs
        total += len(ours)
    assert total > 40
