"""The tables in docs/lora.md are what lora-merge does, cell by cell."""

from __future__ import annotations

import pytest

from tests.lora.matrix import Cell, documented, measured, tables


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return measured()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_variant_on_every_architecture_is_pefts_or_refused(cells: list[Cell]) -> None:
    assert [cell for cell in cells if cell.outcome not in ("merged", "refused", "-")] == []
    assert sum(cell.outcome == "merged" for cell in cells) > 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_documented_tables_are_the_measured_ones(cells: list[Cell]) -> None:
    assert documented() == tables(cells)
