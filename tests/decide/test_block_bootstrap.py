"""Resampled streams are blocks of the series, anywhere from it, and keep what blocks keep."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit_cl.decide.block_bootstrap import resampled


@pytest.mark.parametrize(("rows", "block"), [(40, 1), (40, 7), (100, 33), (3, 5)])
def test_streams_are_made_of_successive_values(rows: int, block: int) -> None:
    series = np.arange(50.0)
    found = resampled(series, 30, rows, block, np.random.default_rng(0))
    assert found.shape == (30, rows)
    for stream in found:
        for at in range(0, rows, block):
            piece = stream[at : at + block]
            assert (np.diff(piece) == 1).all()
            assert piece[0] <= 50 - block


def test_every_block_is_as_likely() -> None:
    found = resampled(np.arange(10.0), 20_000, 3, 3, np.random.default_rng(1))
    counts = np.bincount(found[:, 0].astype(int), minlength=10)
    assert (counts[8:] == 0).all()
    assert (abs(counts[:8] - 2500) < 5 * np.sqrt(2500)).all()


def test_the_variance_of_a_mean_is_kept_by_blocks_and_lost_without() -> None:
    noise = np.random.default_rng(2).standard_normal(20_000)
    for row in range(1, len(noise)):
        noise[row] += 0.8 * noise[row - 1]
    true = 25.0  # of the sum, per row: 1 / (1 - 0.8)^2
    by_block = {
        block: 500 * resampled(noise, 1500, 500, block, np.random.default_rng(3)).mean(axis=1).var()
        for block in (1, 100)
    }
    assert abs(by_block[100] / true - 1) < 0.2
    assert by_block[1] < 0.15 * true
