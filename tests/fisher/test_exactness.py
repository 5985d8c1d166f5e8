"""The table in docs/exactness.md is what the estimator does, on every architecture of it."""

from __future__ import annotations

import pytest

from tests.fisher.exactness import Row, documented, measure, table
from tests.fisher.zoo import ZOO


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    return [measure(architecture) for architecture in ZOO]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_architecture_equals_the_float64_loop(measured: list[Row]) -> None:
    assert [(row.name, row.distances) for row in measured if not row.exact()] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_documented_table_is_the_measured_one(measured: list[Row]) -> None:
    assert documented() == table(measured)
