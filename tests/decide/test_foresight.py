"""What a gate is expected to decide is what it decides, on average."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit_cl.decide.foresight import CHANGE, foresee
from mergekit_cl.decide.gate import compare
from mergekit_cl.decide.pairing import Rows


def decided(rows: int, spread: float, draws: int) -> float:
    """The share of harmless updates that the gate accepts, of simulated ones."""
    draw = np.random.default_rng(0)
    ids = tuple(map(str, range(rows)))
    tokens = np.full(rows, 10)
    accepted = 0
    for _ in range(draws):
        old = 10 * draw.normal(3.0, spread, rows)
        new = old + 10 * draw.normal(0.0, CHANGE * spread, rows)
        found = compare(Rows(ids, new, tokens), Rows(ids, old, tokens), draws=400)
        accepted += found.decision == "accept"
    return accepted / draws


@pytest.mark.parametrize(("rows", "spread"), [(600, 0.4), (600, 0.25)])
def test_the_power_is_the_share_of_harmless_updates_that_are_accepted(
    rows: int, spread: float
) -> None:
    expected = foresee(rows, spread, margin=0.02, alpha=0.05, min_rows=500).power
    assert 0.3 < expected < 0.99
    share = decided(rows, spread, 200)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 200) + 0.02


def test_as_many_rows_as_it_asks_for_have_a_power_of_eighty_percent() -> None:
    options = {"margin": 0.02, "alpha": 0.05, "min_rows": 1}
    needed = foresee(0, 0.5, **options).rows_needed  # type: ignore[arg-type]
    assert foresee(needed, 0.5, **options).power == pytest.approx(0.8, abs=1e-3)  # type: ignore[arg-type]
    assert abs(foresee(37, 0.5, **options).rows_needed - needed) <= 1  # type: ignore[arg-type]


def test_fewer_rows_than_the_least_have_no_power() -> None:
    few = foresee(499, 0.01, margin=0.02, alpha=0.05, min_rows=500)
    assert (few.power, few.rows_needed) == (0.0, 500)
    assert foresee(500, 0.01, margin=0.02, alpha=0.05, min_rows=500).power > 0.999
