"""Processes that meet: values reach all, a failure reaches all, nobody waits for the dead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore

import fisher.meeting
from fisher.meeting import Meeting, PeerError


def _all(world: int, work: Callable[[Meeting], Any]) -> list[Any]:
    """What `work` gives, or the PeerError it raises, for each of `world` threads."""
    store: Any = HashStore()

    def one(rank: int) -> Any:
        try:
            return work(Meeting(store, rank, world))
        except PeerError as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


def test_everyone_hears_everyone_round_by_round() -> None:
    def work(meeting: Meeting) -> list[list[Any]]:
        return [meeting.exchange([meeting.rank, number]) for number in range(3)]

    expected = [[[rank, number] for rank in range(4)] for number in range(3)]
    assert _all(4, work) == [expected] * 4


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_reaches_those_who_wait_and_those_who_come_later(failing: int) -> None:
    def work(meeting: Meeting) -> None:
        meeting.exchange(None)
        if meeting.rank == failing:
            meeting.fail({"why": "a bad row"})
        else:
            meeting.exchange(None)

    found = _all(3, work)
    assert found.pop(failing) is None
    assert [(error.rank, error.said) for error in found] == [(failing, {"why": "a bad row"})] * 2


def test_only_the_first_failure_is_heard() -> None:
    store: Any = HashStore()
    first, second = Meeting(store, 0, 2), Meeting(store, 1, 2)
    first.fail("first")
    second.fail("second")
    with pytest.raises(PeerError) as caught:
        second.check()
    assert (caught.value.rank, caught.value.said) == (0, "first")
    first.check()


def test_a_process_without_a_sign_of_life_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher.meeting, "SILENCE", 0.3)
    store: Any = HashStore()
    with pytest.raises(PeerError, match="no sign of life") as caught:
        Meeting(store, 0, 2).exchange(None)
    assert (caught.value.rank, caught.value.said) == (1, None)
