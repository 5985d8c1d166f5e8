from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from buffers import Arrival, filled, labelled, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.continual.balanced import shares
from mergekit_cl.continual.buffer import Buffer, Policy
from mergekit_cl.continual.buffertext import encode
from mergekit_cl.continual.reservoir import keyed
from mergekit_cl.errors import MismatchError, OptionError

POLICIES: tuple[Policy, ...] = get_args(Policy)

streams = st.lists(
    st.builds(
        # A row's label follows from its number, as a content's label does.
        lambda number, task, step, bare: (
            plain(number, task, step)
            if bare
            else labelled(number, "abcde"[number % 7 % 5], task, step)
        ),
        st.integers(0, 40),
        st.sampled_from(["one", "two"]),
        st.integers(0, 9),
        st.booleans(),
    ),
    max_size=80,
)
policies = st.sampled_from(POLICIES)
capacities = st.integers(1, 25)


def different(arrivals: list[Arrival], policy: Policy) -> dict[tuple[str, str], Arrival]:
    """The first arrival of each different row, as the definition has it: a plain walk."""
    first: dict[tuple[str, str], Arrival] = {}
    for arrival in arrivals:
        row, label, task, step = arrival
        group = "" if policy == "reservoir" else label or task
        before = first.get((group, row.id))
        if before is None or (step, task) < (before[3], before[2]):
            first[group, row.id] = arrival
    return first


def expected(arrivals: list[Arrival], capacity: int, policy: Policy) -> set[tuple[str, str, int]]:
    """What a buffer holds, from all rows at once."""
    groups: dict[str, list[Arrival]] = {}
    for (group, _), arrival in different(arrivals, policy).items():
        groups.setdefault(group, []).append(arrival)
    kept = shares({name: len(rows) for name, rows in groups.items()}, capacity, 0)
    found = set()
    for name, rows in groups.items():
        by_arrival = policy == "gdumb"
        rows.sort(key=lambda one: (one[3] if by_arrival else 0, keyed(0, one[0].id)))
        found |= {(row.id, task, step) for row, _, task, step in rows[: kept[name]]}
    return found


@given(streams, capacities, policies)
@settings(max_examples=60, deadline=None)
def test_a_buffer_is_what_its_definition_makes_of_all_rows_at_once(
    arrivals: list[Arrival], capacity: int, policy: Policy
) -> None:
    buffer = filled(arrivals, capacity, policy=policy)
    found = {(kept.row.id, kept.task, kept.step) for kept in buffer.rows()}
    assert found == expected(arrivals, capacity, policy)
    assert buffer.seen == len(arrivals)


@given(streams, capacities, policies, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_does_not_matter(
    arrivals: list[Arrival], capacity: int, policy: Policy, random: object
) -> None:
    shuffled = arrivals.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert encode(filled(arrivals, capacity, policy=policy)) == encode(
        filled(shuffled, capacity, policy=policy)
    )


@given(streams, capacities, policies, st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_buffers_of_several_processes_merge_into_that_of_one(
    arrivals: list[Arrival], capacity: int, policy: Policy, processes: int
) -> None:
    parts = [
        filled(arrivals[rank::processes], capacity, policy=policy) for rank in range(processes)
    ]
    first, *others = reversed(parts)
    for other in others:
        first.merge(other)
    assert encode(first) == encode(filled(arrivals, capacity, policy=policy))


@given(streams, capacities, policies)
@settings(max_examples=60, deadline=None)
def test_rows_that_come_again_change_nothing_but_the_count(
    arrivals: list[Arrival], capacity: int, policy: Policy
) -> None:
    once = filled(arrivals, capacity, policy=policy)
    again = filled([*arrivals, *arrivals], capacity, policy=policy)
    assert once.rows() == again.rows()
    assert again.seen == 2 * once.seen


@pytest.mark.parametrize("policy", ["balanced", "gdumb"])
def test_classes_are_balanced_whatever_their_shares_of_the_stream(policy: Policy) -> None:
    labels = ["common"] * 900 + ["rare"] * 90 + ["single"] * 4 + ["other"] * 300
    arrivals = [labelled(number, label, step=number) for number, label in enumerate(labels)]
    buffer = filled(arrivals, 100, policy=policy)
    assert buffer.describe().classes == {"common": 32, "other": 32, "rare": 32, "single": 4}
    assert filled(arrivals, 100).describe().classes["common"] > 50


def test_rows_without_labels_are_balanced_over_tasks() -> None:
    arrivals = [plain(n, "long", n) for n in range(500)] + [plain(n, "short", n) for n in range(30)]
    assert filled(arrivals, 40, policy="balanced").describe().tasks == {"long": 20, "short": 20}


def test_gdumb_keeps_the_first_rows_of_a_class() -> None:
    arrivals = [labelled(number, "ab"[number % 2], step=number) for number in range(100)]
    steps = [kept.step for kept in filled(arrivals, 10, policy="gdumb").rows()]
    assert sorted(steps) == list(range(10))


def test_a_row_that_is_held_out_never_enters_and_leaves_when_it_is_held_out_later() -> None:
    arrivals = [plain(number) for number in range(10)]
    ids = [arrival[0].id for arrival in arrivals]
    buffer = Buffer(100, held_out=ids[:3])
    added = [buffer.add(*arrival) for arrival in arrivals]
    assert added == [False] * 3 + [True] * 7
    assert buffer.seen == 7
    gone = buffer.hold_out(ids[2:5])
    assert {kept.row.id for kept in gone} == set(ids[3:5])
    assert {kept.row.id for kept in buffer.rows()} == set(ids[5:])
    other = filled(arrivals, 100)
    buffer.merge(other)
    assert {kept.row.id for kept in buffer.rows()} == set(ids[5:])


def test_balance_and_age_are_described() -> None:
    arrivals = [labelled(n, "a", "one", 0) for n in range(6)]
    arrivals += [labelled(n, "b", "two", 10) for n in range(6, 9)]
    found = filled(arrivals, 20, policy="balanced").describe(step=30)
    assert (found.rows, found.seen, found.classes) == (9, 9, {"a": 6, "b": 3})
    assert found.tasks == {"one": 6, "two": 3}
    assert found.balance == 0.5
    assert found.age == (6 * 30 + 3 * 20) / 9
    empty = Buffer(3).describe(step=1)
    assert (empty.balance, empty.age, empty.distinct) == (None, None, 0)


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 30), min_size=1), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_shares_fill_the_room_and_differ_by_one_at_most(counts: dict[str, int], room: int) -> None:
    kept = shares(counts, room, 0)
    assert sum(kept.values()) == min(room, sum(counts.values()))
    full = [kept[name] for name in counts if kept[name] < counts[name]]
    if full:
        assert max(kept.values()) <= min(full) + 1
    assert all(0 <= kept[name] <= counts[name] for name in counts)


def test_the_remainder_goes_to_different_classes_for_different_seeds() -> None:
    counts = dict.fromkeys("abc", 10)
    extra = Counter(
        name for seed in range(60) for name, n in shares(counts, 10, seed).items() if n == 4
    )
    assert set(extra) == set("abc")


def test_buffers_of_other_seeds_or_sizes_are_not_merged() -> None:
    for other in (Buffer(5, 1), Buffer(6, 0), Buffer(5, 0, "gdumb")):
        with pytest.raises(MismatchError, match="do not belong together"):
            Buffer(5).merge(other)


def test_a_buffer_without_room_or_with_an_unknown_policy_is_refused() -> None:
    with pytest.raises(OptionError, match="room"):
        Buffer(0)
    with pytest.raises(OptionError, match="policy") as caught:
        Buffer(1, 0, "fifo")  # type: ignore[arg-type]
    assert caught.value.hint == "one of reservoir, balanced, gdumb"
