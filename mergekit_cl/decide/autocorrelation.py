"""How long a series remembers, and how long blocks must be to keep that."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log10, sqrt

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Memory:
    """time: rows that count as one independent row (1 for white noise).

    block: rows in a block of the block bootstrap.
    """

    time: float
    block: int


def autocovariance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """R(0) ... R(n - 1) of one series, each a sum divided by n."""
    centred = values - values.mean()
    spectrum = np.fft.rfft(centred, 2 * len(values))
    found: NDArray[np.float64] = np.fft.irfft(np.abs(spectrum) ** 2)[: len(values)]
    return found / len(values)


def memory(values: NDArray[np.float64]) -> Memory:
    """The autocorrelation time of a series, and the block length that follows from it.

    The block length estimates the one of least mean squared error of the variance of a mean.
    Source: Politis and White 2004, corrected by Patton, Politis and White 2009, equation for the
    circular bootstrap, whose error that of moving blocks equals.
    """
    rows = len(values)
    covariance = autocovariance(values)
    if covariance[0] <= 0:
        return Memory(1.0, 1)
    last = 2 * _significant(covariance / covariance[0])
    lags = np.arange(1, min(last, rows - 1) + 1)
    # A flat-top window: whole up to half of the last lag, then falling to nothing.
    weighted = np.minimum(1.0, 2 - 2 * lags / max(last, 1)) * covariance[lags]
    density = float(covariance[0] + 2 * weighted.sum())
    slope = float(2 * (lags * weighted).sum())
    longest = ceil(min(3 * sqrt(rows), rows / 3))
    if density <= 0:
        # More than all of it cancels: an estimate of a small number. Nothing to keep together.
        return Memory(1.0, longest if slope else 1)
    block = (1.5 * (slope / density) ** 2 * rows) ** (1 / 3)
    return Memory(max(1.0, density / float(covariance[0])), int(min(max(1, ceil(block)), longest)))


def _significant(correlation: NDArray[np.float64]) -> int:
    """The last lag with a correlation above noise, before a run of lags without one."""
    rows = len(correlation)
    run = max(5, ceil(sqrt(log10(rows))))
    noise = 2 * sqrt(log10(rows) / rows)
    longest = min(rows - 1, ceil(sqrt(rows)) + run)
    quiet = np.abs(correlation[1 : longest + 1]) < noise
    for lag in range(len(quiet) - run + 1):
        if quiet[lag : lag + run].all():
            return lag
    return longest
