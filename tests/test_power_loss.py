"""A power loss at any moment takes what was not synced: the same command ends in the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest
from disk import State, after_power_loss, states
from forked import Forks
from interrupted import SCENARIOS, Expected, prepared


@pytest.fixture(scope="module", params=SCENARIOS, ids=lambda scenario: scenario.name)
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forks: Forks
) -> tuple[Expected, list[State]]:
    """A scenario, and the state before every change its command makes, undisturbed."""
    folder = tmp_path_factory.mktemp("prepared")
    expected = prepared(request.param, folder, forks)
    place = expected.copy(folder / "recorded")
    ended = forks.run(
        place / request.param.cwd,
        (*request.param.line, "--threads", "1"),
        exchange=request.param.exchange,
        root=str(place),
        record=str(folder / "states"),
    )
    assert ended.status == 0, ended.err
    shutil.rmtree(place)
    found = states(folder / "states")
    assert len(found) == ended.steps + 1 > 30
    return expected, found


def lose_power(
    recorded: tuple[Expected, list[State]], forks: Forks, draws: int, every: int
) -> None:
    """Draw places that the disk may hold at one of `every` moments, and give the command there."""
    expected, moments = recorded
    scenario = expected.scenario
    place = expected.place.with_name("recorded")  # the same paths: they are part of what is asked
    for number in range(every // 2, len(moments), every):
        for seed in range(draws):
            told = f"{scenario.name}: before step {number} ({moments[number].step}), seed {seed}"
            after_power_loss(moments[number], Random(f"{number} {seed}"), place)
            try:
                is_new = expected.check_readable(place)
                if not is_new or "--in-place" not in scenario.line or _is_claimed(place):
                    ended = forks.run(
                        place / scenario.cwd, scenario.line, exchange=scenario.exchange
                    )
                    assert ended.status == 0, ended.err
                    assert expected.check_readable(place), "the output is not the new one"
                    assert expected.leftovers(place) == []
            except AssertionError as error:
                raise AssertionError(f"{told}: see {place}") from error
            shutil.rmtree(place)


def _is_claimed(place: Path) -> bool:
    return any(place.rglob(".*.partial/*.json"))


def test_the_disk_keeps_what_was_synced_and_may_lose_the_rest(tmp_path: Path) -> None:
    state = State("a test")
    state.synced_names = {0: {"kept": 1, "was": 2, "removed": 5}}
    state.seen_names = {0: {"kept": 1, "is": 2, "new": 3, "folder": 4}, 4: {"inner": 3}}
    state.seen_bytes = {1: b"11", 2: b"2", 3: b"3"}
    state.synced_bytes = {1: b"1", 2: b"2", 5: b"5"}
    found = set()
    for seed in range(300):
        place = tmp_path / str(seed)
        after_power_loss(state, Random(seed), place)
        names = {str(path.relative_to(place)) for path in place.rglob("*")}
        assert "kept" in names
        assert names & {"was", "is"}, "a renamed file is lost"
        assert all((place / n).read_bytes() == b"2" for n in names & {"was", "is"})
        found.add((place / "kept").read_bytes())
        found |= names
    assert found >= {b"1", b"11", "was", "is", "new", "folder", "folder/inner", "removed"}


def test_after_a_power_loss_the_same_command_ends_in_the_same_bytes(
    recorded: tuple[Expected, list[State]], forks: Forks
) -> None:
    lose_power(recorded, forks, draws=1, every=17)


@pytest.mark.long
def test_after_a_power_loss_at_every_moment_it_ends_in_the_same_bytes(
    recorded: tuple[Expected, list[State]], forks: Forks
) -> None:
    lose_power(recorded, forks, draws=6, every=1)
