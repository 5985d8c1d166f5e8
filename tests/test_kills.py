"""Killed at any instant, as often as may be: the same command ends in the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import pytest
from forked import Ended, Forks
from interrupted import SCENARIOS, Expected

KILLED = -9


each_scenario = pytest.mark.parametrize(
    "expected", SCENARIOS, indirect=True, ids=lambda scenario: scenario.name, scope="module"
)


class Trial:
    """One place in which a command is killed and given again."""

    def __init__(self, expected: Expected, place: Path, forks: Forks, threads: int) -> None:
        self.expected = expected
        self.place = expected.copy(place)
        self._forks = forks
        self._line = (*expected.scenario.line, "--threads", str(threads))

    def run(self, **how: float | int) -> Ended:
        """The command once, however it ends."""
        scenario = self.expected.scenario
        return self._forks.run(
            self.place / scenario.cwd, self._line, exchange=scenario.exchange, **how
        )

    def end(self, *kills: dict[str, float | int]) -> int:
        """Kill the command as told each time it is given, then let it end; how often it died.

        After each run a reader finds whole files, and nothing that was finished was made again.
        """
        died = 0
        is_new = False
        for how in (*kills, {}):
            finished = self._finished_files()
            ended = self.run(**how)
            assert ended.status in (0, KILLED), ended.err
            died += ended.status == KILLED
            is_new = self.expected.check_readable(self.place)
            self._check_not_redone(finished)
            if is_new:
                break
        assert is_new, "the last run ended, and its output is not there"
        if self.expected.leftovers(self.place):
            # Killed while it removed its temporary place, which the next command there does. In
            # place that may be another update.
            given_again = self.run()
            assert given_again.status == 0, given_again.err
            assert self.expected.leftovers(self.place) == []
            if "--in-place" not in self._line:
                assert self.expected.check_readable(self.place)
        shutil.rmtree(self.place)
        return died

    def _finished_files(self) -> dict[str, tuple[int, int]]:
        """{name: (inode, time)} of the output files that the journal holds."""
        found = {}
        for journal in self.place.rglob(".*.partial/journal.jsonl"):
            for line in journal.read_bytes().split(b"\n")[:-1]:
                path = journal.parent / "out" / json.loads(line)["shard"]
                if path.exists() and any(journal.parent.glob("*.json")):
                    found[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
        return found

    def _check_not_redone(self, before: dict[str, tuple[int, int]]) -> None:
        now = {(p.stat().st_ino, p.stat().st_mtime_ns) for p in self.place.rglob("*.safetensors")}
        for name, finished in before.items():
            assert finished in now, f"{name} was finished and was made again"


def kill_at_random_instants(
    expected: Expected, forks: Forks, folder: Path, first_seed: int, hits: int
) -> None:
    """One to three kills for each seed, over the whole time of a run, until `hits` have hit."""
    name = expected.scenario.name
    whole = Trial(expected, folder / "undisturbed", forks, 2).run().seconds
    seed = first_seed
    while hits > 0:
        random = Random(seed)
        delays = [random.uniform(0.1, 1.05) * whole for _ in range(random.randint(1, 3))]
        try:
            trial = Trial(expected, folder / f"seed{seed}", forks, 2)
            died = trial.end(*({"kill_after": delay} for delay in delays))
        except AssertionError as error:
            raise AssertionError(f"{name}: seed {seed}, killed after {delays} s") from error
        if died == 0:
            whole *= 0.9  # the run that was timed was slower than most
            assert whole > 1e-3, "no kill ever hits"
        hits -= died
        seed += 1


def kill_before_steps(expected: Expected, forks: Forks, folder: Path, every: int) -> int:
    """Kill before one of `every` changes of a file; then again, a few changes on."""
    name = expected.scenario.name
    steps = Trial(expected, folder / "undisturbed", forks, 1).run().steps
    assert steps > 30, "the changes a merge makes are not seen"
    died = 0
    for step in range(every // 2, steps, every):
        try:
            trial = Trial(expected, folder / f"step{step}", forks, 1)
            died += trial.end({"kill_at": step}, {"kill_at": step % 11 + 1})
        except AssertionError as error:
            raise AssertionError(f"{name}: killed before step {step} of {steps}") from error
    return died


@each_scenario
def test_killed_at_random_instants_it_ends_in_the_same_bytes(
    expected: Expected, forks: Forks, tmp_path: Path
) -> None:
    first = 1000 * SCENARIOS.index(expected.scenario)
    kill_at_random_instants(expected, forks, tmp_path, first, hits=3)


@each_scenario
def test_killed_before_a_change_of_a_file_it_ends_in_the_same_bytes(
    expected: Expected, forks: Forks, tmp_path: Path
) -> None:
    assert kill_before_steps(expected, forks, tmp_path, every=23) > 2


@pytest.mark.long
@each_scenario
def test_killed_at_200_random_instants_it_ends_in_the_same_bytes(
    expected: Expected, forks: Forks, tmp_path: Path
) -> None:
    first = 1000 * SCENARIOS.index(expected.scenario) + 500
    kill_at_random_instants(expected, forks, tmp_path, first, hits=25)


@pytest.mark.long
@each_scenario
def test_killed_before_every_change_of_a_file_it_ends_in_the_same_bytes(
    expected: Expected, forks: Forks, tmp_path: Path
) -> None:
    assert kill_before_steps(expected, forks, tmp_path, every=1) > 30
