"""The tables in docs/lora.md are what lora-merge does, cell by cell.

Each cell that is merged is merged once more in bfloat16, float16 or float32, where it has to be the
exact result rounded once, and taken back to the bit, by the base or by its bits, with residuals or
without; `make test-long` does all of it in every cell.
"""

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


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_every_cell_is_rounded_once_and_taken_back_in_every_way() -> None:
    cells = measured(thorough=True)
    assert [cell for cell in cells if cell.outcome not in ("merged", "refused", "-")] == []
