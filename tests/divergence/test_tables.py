"""Sums of many blocks at once are the sums of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergekit_cl.divergence.conflict import conflict_sums
from mergekit_cl.divergence.tables import COLUMNS, TABLE_SCRATCH, fill_table, per_block, read_table

BLOCK = 64


@pytest.mark.parametrize("size", [1, 63, 64, 65, 300])
def test_every_sum_is_that_of_float64_numpy(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    merged, exact, one, other = torch.randn((4, size), generator=generator)
    fisher = torch.rand(size, generator=generator)
    blocks = -(-size // BLOCK)
    table = torch.full((blocks, 2, len(COLUMNS)), float("nan"), dtype=torch.float64)
    scratch = [torch.empty(size, dtype=torch.float64) for _ in range(TABLE_SCRATCH)]
    changed = [merged != one, merged > other]
    fill_table(table, merged, exact, [one, other], [fisher, None], changed, scratch, BLOCK)
    counts = [min(BLOCK, size - start) for start in range(0, size, BLOCK)]
    found = read_table(table, counts, [True, False], 5)
    for number, row in enumerate(found):
        part = slice(number * BLOCK, (number + 1) * BLOCK)
        m, x, f = (t[part].double().numpy() for t in (merged, exact, fisher))
        for k, (sums, parent) in enumerate(zip(row, (one, other), strict=True)):
            p = parent[part].double().numpy()
            expected = {
                "count": len(p),
                "parent_square": (p * p).sum(),
                "merged_square": (m * m).sum(),
                "difference_square": ((m - p) ** 2).sum(),
                "largest": np.abs(m - p).max(),
                "changed": int(changed[k][part].sum()),
                "update_square": ((x - p) ** 2).sum(),
                "update_survived": ((x - p) * (m - p)).sum(),
                "fisher_square": None if k else (f * (m - p) ** 2).sum(),
                "fallback": 5 if number == 0 else 0,
            }
            assert (sums.fisher_square is None) == (k == 1)
            for quantity, value in expected.items():
                if value is not None:
                    assert getattr(sums, quantity) == pytest.approx(value, rel=1e-12), quantity
            assert isinstance(sums.changed, int)


def test_a_short_last_block_is_a_block() -> None:
    values = torch.arange(130, dtype=torch.float64)
    expected = [values[:64].sum(), values[64:128].sum(), values[128:].sum()]
    assert per_block(values, 64).tolist() == expected
    assert per_block(values, 64, "largest").tolist() == [63, 127, 129]
    assert per_block(values[:128], 64).tolist() == expected[:2]


def test_without_a_fallback_nothing_is_said_of_one() -> None:
    table = torch.zeros((2, 1, len(COLUMNS)), dtype=torch.float64)
    assert [row[0].fallback for row in read_table(table, [64, 1], [False], None)] == [None, None]


def test_a_base_gives_the_conflict_of_the_parents_differences_from_it() -> None:
    one, other, base = (
        torch.randn(300, generator=torch.Generator().manual_seed(k)) for k in (1, 2, 3)
    )
    changed = [torch.ones(300, dtype=torch.bool)] * 2
    scratch = [torch.empty(300, dtype=torch.float64) for _ in range(TABLE_SCRATCH)]
    table = torch.full((5, 2, len(COLUMNS)), torch.nan, dtype=torch.float64)
    fill_table(table, one, one, [one, other], [None, None], changed, scratch, BLOCK, base)
    found = read_table(table, [BLOCK] * 4 + [300 - 4 * BLOCK], [False, False], None, based=True)
    for number, sums in enumerate(found):
        part = slice(number * BLOCK, (number + 1) * BLOCK)
        expected = conflict_sums([one[part], other[part]], base[part], [t[part] for t in scratch])
        for parent in sums:
            assert (parent.conflict, parent.conflict_whole) == pytest.approx(expected, rel=1e-9)
