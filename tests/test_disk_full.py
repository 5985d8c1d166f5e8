"""A disk that is full at any write: said in one message, and continued once there is room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forked import Forks
from interrupted import SCENARIOS, Expected
from making import linear, merge, model_tensors, write_model

from mergekit_cl.errors import OutputError
from mergekit_cl.output import target

NAMES = (
    "a new folder",
    "with residuals",
    "one file in place",
    "a Fisher sidecar",
    "adapted, with the bits to undo it",
    "back by bits",
    "an adapter",
)
CHOSEN = [scenario for scenario in SCENARIOS if scenario.name in NAMES]


each_scenario = pytest.mark.parametrize(
    "expected", CHOSEN, indirect=True, ids=lambda scenario: scenario.name, scope="module"
)


def fill_the_disk(expected: Expected, forks: Forks, folder: Path, every: int) -> int:
    """Let the disk be full from one of `every` writes on; how often that stopped the command."""
    scenario = expected.scenario
    line = (*scenario.line, "--threads", "1")
    place = expected.copy(folder / "place")
    writes = forks.run(place / scenario.cwd, line, fail_at=10**6).steps
    shutil.rmtree(place)
    for write in range(every // 2, writes, every):
        place = expected.copy(folder / "place")
        told = f"{scenario.name}: full from write {write} of {writes}"
        ended = forks.run(place / scenario.cwd, line, fail_at=write)
        assert ended.status == 1, told
        first, where, advice = ended.err.splitlines()
        assert first == "error: writing failed", told
        assert where.endswith("No space left on device"), told
        assert "give the same command again" in advice, told
        expected.check_readable(place)
        ended = forks.run(place / scenario.cwd, line)
        assert ended.status == 0, f"{told}: {ended.err}"
        assert expected.check_readable(place), told
        assert expected.leftovers(place) == [], told
        shutil.rmtree(place)
    return writes


@each_scenario
def test_a_full_disk_is_said_and_continued(
    expected: Expected, forks: Forks, tmp_path: Path
) -> None:
    assert fill_the_disk(expected, forks, tmp_path, every=7) >= 10


@pytest.mark.long
@each_scenario
def test_a_disk_full_at_every_write_is_said_and_continued(
    expected: Expected, forks: Forks, tmp_path: Path
) -> None:
    assert fill_the_disk(expected, forks, tmp_path, every=1) >= 10


def test_a_file_that_may_not_grow_is_said_and_continued(tmp_path: Path, forks: Forks) -> None:
    # The system itself refuses: no call is replaced.
    for k, name in enumerate("ab"):
        write_model(tmp_path / name, model_tensors(k))
    line = ("linear-merge", "a", "b")
    ended = forks.run(tmp_path, line, file_bytes=4000)
    assert ended.status == 1
    assert ended.err.startswith("error: writing failed\n")
    assert "File too large" in ended.err
    assert not (tmp_path / "merged").exists()
    assert forks.run(tmp_path, line).status == 0
    assert forks.run(tmp_path, ("verify", "merged")).status == 0


def test_too_little_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [write_model(tmp_path / name, model_tensors(k)) for k, name in enumerate("ab")]
    usage = shutil.disk_usage(tmp_path)._replace(free=target.SPARE_BYTES)
    monkeypatch.setattr(target.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OutputError, match="no room on the disk"):
        merge(linear(inputs), tmp_path / "new/out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
