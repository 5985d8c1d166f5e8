"""Autocorrelation, its time and the block length, against closed forms for AR(1)."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mergekit_cl.decide.autocorrelation import autocovariance, memory


def autoregressive(share: float, rows: int, seed: int = 0) -> NDArray[np.float64]:
    noise = np.random.default_rng(seed).standard_normal(rows + 200)
    for row in range(1, len(noise)):
        noise[row] += share * noise[row - 1]
    return noise[200:]


def test_the_autocovariance_is_that_of_the_sum() -> None:
    values = autoregressive(0.6, 57)
    centred = values - values.mean()
    wanted = [centred[: 57 - lag] @ centred[lag:] / 57 for lag in range(57)]
    np.testing.assert_allclose(autocovariance(values), wanted, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 0.9])
def test_time_and_block_are_those_of_an_autoregression(share: float) -> None:
    # time = (1 + a) / (1 - a); Politis and White: (1.5 (2 a / (1 - a^2))^2 rows)^(1/3).
    rows = 20_000
    found = [memory(autoregressive(share, rows, seed)) for seed in range(12)]
    time = (1 + share) / (1 - share)
    block = max(1.0, (1.5 * (2 * share / (1 - share**2)) ** 2 * rows) ** (1 / 3))
    assert np.mean([one.time for one in found]) == pytest.approx(time, rel=0.15)
    assert np.median([one.block for one in found]) == pytest.approx(block, rel=0.25)


@pytest.mark.parametrize("rows", [2, 3, 10, 60])
def test_short_and_constant_series_have_blocks_that_fit(rows: int) -> None:
    for values in (np.ones(rows), np.arange(rows) * 1.0, (-1.0) ** np.arange(rows)):
        found = memory(values)
        assert 1 <= found.block <= rows
        assert found.time >= 1
