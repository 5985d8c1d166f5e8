"""How far a ratio of sums over rows may be from what all rows there could be would give."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from mergekit_cl.decide.ratio import Array, ratio

DRAWS = 10_000
BLOCK = 2**18
"""Rows drawn at once: 2 MB of indices, and of counts twice that or the rows' own number."""

RESOLVED = 20
"""Draws that must lie beyond an end for the bootstrap alone to place it."""

LEAST_ERROR = 0.1
"""Of the sample's standard error: where few rows differ, some draws have none of them."""


@dataclass(frozen=True)
class Bounds:
    """A ratio, its standard error, and its one-sided confidence bounds."""

    value: float
    error: float
    lower: float
    upper: float


def bounds(values: Array, weights: Array, alpha: float, *, draws: int, seed: int) -> Bounds:
    """One-sided bounds of sum x / sum w over rows, each missed with probability `alpha`.

    values, weights: (n,) with n >= 2; weights above 0. Rows are resampled together with their
    weights; the ratio's distance from the sample's is divided by each draw's own standard error
    (bootstrap-t), so that a skewed loss, such as one that rose on few rows only, is not underrated:
    percentiles of the ratio itself miss by 6 to 11 % there where 5 % was asked. Beyond what `draws`
    resolve, a bound is at least as far as the normal distribution's.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 12.5.
    """
    value, error = ratio(values, weights)
    if error is None:
        raise ValueError("bounds need two rows")
    if error == 0:
        return Bounds(value, 0.0, value, value)
    distances = np.sort(studentised(values, weights, draws=draws, seed=seed))
    below, above = _quantile(distances, alpha), -_quantile(-distances[::-1], alpha)
    if alpha * draws < RESOLVED:
        tail = NormalDist().inv_cdf(alpha)
        below, above = min(below, tail), max(above, -tail)
    return Bounds(value, error, value - above * error, value - below * error)


def studentised(values: Array, weights: Array, *, draws: int, seed: int) -> Array:
    """(draws,) of (r* - r) / se*: r* and se* of n rows drawn with replacement.

    The draws follow from `seed` and n alone. Memory does not grow with draws times rows.
    """
    count = len(values)
    value, error = ratio(values, weights)
    assert error is not None
    # About the ratio, squares do not cancel: x - r w is small where x and r w are not.
    rest = values - value * weights
    terms = np.stack([rest, weights, rest * rest, rest * weights, weights * weights], axis=1)
    generator = np.random.Generator(np.random.PCG64(seed))
    sums = np.empty((draws, terms.shape[1]))
    together = max(1, BLOCK // count)
    for first in range(0, draws, together):
        some = min(together, draws - first)
        sums[first : first + some] = _times_drawn(generator, some, count) @ terms
    x, w, xx, xw, ww = sums.T
    moved = x / w
    squares = np.maximum(xx - 2 * moved * xw + moved**2 * ww, 0.0)
    errors = np.sqrt(count / (count - 1) * squares) / w
    found: Array = moved / np.maximum(errors, LEAST_ERROR * error)
    return found


def _times_drawn(generator: np.random.Generator, draws: int, count: int) -> Array:
    """(draws, n): how often each of n rows comes in n drawn with replacement."""
    times = np.zeros(draws * count)
    starts = np.arange(draws)[:, None] * count
    # Indices take as much room as counts: of many rows a part at a time.
    for first in range(0, count, BLOCK):
        drawn = generator.integers(0, count, (draws, min(BLOCK, count - first)))
        drawn += starts
        times += np.bincount(drawn.ravel(), minlength=draws * count)
    return times.reshape(draws, count)


def _quantile(ascending: Array, alpha: float) -> float:
    """The order statistic that at most a share `alpha` of all draws to come is below."""
    return float(ascending[max(0, int(alpha * (len(ascending) + 1)) - 1)])
