"""Rows in stages, and when enough of them were seen."""

from __future__ import annotations

import pytest

from mergekit_cl.estimating.sampling import FIRST_LOOK, LOOK_EVERY, describe_sampling, in_stages
from mergekit_cl.training.encode import Encoded, EncodedRow


def encoded(count: int) -> Encoded:
    """Rows of 1 to 7 tokens, longest first, as `encode` gives them."""
    rows = [EncodedRow(f"{i:03}", (1,) * (i % 7 + 2), (1,) * (i % 7 + 2)) for i in range(count)]
    rows.sort(key=lambda row: (-len(row.ids), row.id))
    return Encoded("causal-lm", tuple(rows), 9, 0, 0, 0, 0)


def shuffled(count: int) -> list[str]:
    return [f"{i * 37 % count:03}" for i in range(count)]


@pytest.mark.parametrize("size", [1, 4, 16, 64])
def test_the_rows_before_each_decision_are_the_same_for_every_batch_size(size: int) -> None:
    count = 100
    order = shuffled(count)
    stages = in_stages(encoded(count), order, 0.1)
    seen: list[str] = []
    looks = []
    for batch in stages.batches(size, order):
        seen += batch.row_ids
        if stages.enough(len(seen), 0.1):
            looks.append(len(seen))
            assert sorted(seen) == sorted(order[: len(seen)])
    assert looks == list(range(FIRST_LOOK, count, LOOK_EVERY))
    assert sorted(seen) == sorted(order)


def test_without_a_target_all_rows_come_longest_first_and_nothing_is_enough() -> None:
    rows = encoded(40)
    stages = in_stages(rows, [], None)
    names = [row.id for row in rows.rows]
    seen = [name for batch in stages.batches(7, names) for name in batch.row_ids]
    assert seen == names
    assert not stages.enough(32, 0.0)


def test_batches_continue_where_they_were_left() -> None:
    order = shuffled(100)
    stages = in_stages(encoded(100), order, 0.1)
    whole = [batch.row_ids for batch in stages.batches(12, order)]
    done = {name for names in whole[:3] for name in names}
    left = [b.row_ids for b in stages.batches(12, set(order) - done)]
    assert [name for names in left for name in names] == [n for names in whole[3:] for n in names]


@pytest.mark.parametrize(
    ("examples", "error", "expected"),
    [
        (32, 0.1, True),
        (32, 0.11, False),
        (48, 0.05, True),
        (16, 0.01, False),  # too early to know an error
        (40, 0.01, False),  # between two looks
        (32, None, False),
    ],
)
def test_enough_is_decided_at_fixed_counts(
    examples: int, error: float | None, expected: bool
) -> None:
    assert in_stages(encoded(1), ["000"], 0.1).enough(examples, error) is expected


@pytest.mark.parametrize(
    ("examples", "error", "target", "stopped", "needed"),
    [
        (256, 0.1, None, "samples", None),
        (200, 0.1, None, "rows", None),
        (48, 0.1, 0.1, "target", None),
        (256, 0.2, 0.1, "samples", 1024),
        (200, 0.1, 0.03, "rows", 2223),
        (1, None, 0.1, "rows", None),
    ],
)
def test_the_sidecar_says_why_a_run_stopped_and_how_many_rows_the_target_would_need(
    examples: int, error: float | None, target: float | None, stopped: str, needed: int | None
) -> None:
    assert describe_sampling(examples=examples, asked=256, error=error, target=target) == {
        "target_se": target,
        "relative_standard_error": error,
        "stopped": stopped,
        "examples_needed": needed,
    }
