from __future__ import annotations

import pytest

from mergekit_cl.continual.gdumb import batches, learning_rate


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    rows = list(range(23))
    ids = [f"row {number}" for number in rows]
    epochs = [list(batches(rows, ids, 5, 0, epoch)) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == rows
        assert [len(batch) for batch in epoch] == [5, 5, 5, 5, 3]
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[1] == list(batches(rows, ids, 5, 0, 1))


def test_rates_restart_after_one_two_and_four_epochs() -> None:
    rates = [learning_rate(epoch) for epoch in range(16)]
    assert rates[0] == 0.005
    assert [epoch for epoch in range(1, 16) if rates[epoch] == 0.05] == [1, 2, 4, 8]
    for start in (2, 4, 8):
        cycle = rates[start : 2 * start]
        assert cycle == sorted(cycle, reverse=True)
    assert rates[12] == pytest.approx((0.05 + 0.0005) / 2)
