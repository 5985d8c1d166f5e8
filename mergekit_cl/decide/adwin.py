"""ADWIN: does the newest part of an adaptive window have another mean than the rest?"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from mergekit_cl.decide.alarm import Crossing, Direction
from mergekit_cl.decide.histogram import Histogram

NAME = "adwin"
EVERY = 8
SHORTEST = 5


@dataclass
class Adwin:
    """Adaptive windowing on one stream, its window kept as an exponential histogram.

    A change is where two parts of the window, older W0 and newer W1, have means that differ by

        eps >= sqrt(2/m v ln(2/d')) + 2/(3m) ln(2/d'),  1/m = 1/n0 + 1/n1,  d' = d / ln n

    v: the window's variance. Solved for the logarithm, the statistic is ln(2/d') - ln ln n at the
    cut that differs most, and the threshold is ln(2/d). After an alarm it starts over: what W1
    holds of a false one would soon look like a change back. Parts of fewer than `shortest` rows
    are not compared. every: rows between two looks. Source: Bifet and Gavalda 2007, with the d' of
    their implementation (about ln n cuts are looked at).
    """

    threshold: float
    every: int = EVERY
    shortest: int = SHORTEST
    rows: int = 0
    window: Histogram = field(default_factory=Histogram)

    def update(self, x: float) -> Crossing | None:
        """Take one row in; tells of a change."""
        self.window.add(x)
        self.rows += 1
        if self.rows % self.every:
            return None
        found = self._look()
        if found is not None:
            self.window = Histogram(self.window.per_size)
        return found

    def statistic(self) -> float | None:
        """Of the window as it is, looked at or not; None where it is too short to have parts."""
        cuts = self._cuts()
        return None if cuts is None else float(cuts.statistic.max())

    def _look(self) -> Crossing | None:
        cuts = self._cuts()
        if cuts is None:
            return None
        best = int(np.argmax(cuts.statistic))
        if cuts.statistic[best] <= self.threshold:
            return None
        direction: Direction = "up" if cuts.difference[best] > 0 else "down"
        found = float(cuts.statistic[best])
        return Crossing(direction, found, self.threshold, int(cuts.newer[best]))

    def _cuts(self) -> _Cuts | None:
        window = self.window
        counts = np.array(window.counts, dtype=np.int64)
        total = int(counts.sum())
        older = np.cumsum(counts)[:-1]
        allowed = (older >= self.shortest) & (total - older >= self.shortest)
        if not allowed.any():
            return None
        sums = np.cumsum(window.sums)
        difference = (sums[-1] - sums[:-1]) / (total - older) - sums[:-1] / older
        found = cut_statistic(np.abs(difference), older, total, window.variance())
        return _Cuts(np.where(allowed, found, -np.inf), difference, total - older)


@dataclass(frozen=True)
class _Cuts:
    """Each cut's statistic, difference of means (newer less older), and rows in the newer part."""

    statistic: NDArray[np.float64]
    difference: NDArray[np.float64]
    newer: NDArray[np.int64]


def cut_statistic(
    difference: NDArray[np.float64],
    older: NDArray[np.int64],
    total: int,
    variance: float | NDArray[np.float64],
) -> NDArray[np.float64]:
    """ln(2/d') - ln ln n of the smallest d at which each cut would still be one.

    difference: of the means, absolute, (..., cuts). older: rows in W0 at each cut.
    """
    spread = 1.0 / older + 1.0 / (total - older)
    slope = 2.0 / 3.0 * spread
    root = np.sqrt(2.0 * spread * variance)
    # eps = root y + slope y^2 for y = sqrt(ln(2/d')), in the form that does not cancel. Below the
    # fraction there is 0 where the window is constant, and above it too.
    below = root + np.sqrt(root**2 + 4.0 * slope * difference)
    solved: NDArray[np.float64] = 2.0 * difference / np.where(below > 0, below, 1.0)
    return solved**2 - log(log(total))


def adwin_path(
    streams: NDArray[np.float64], earlier: int, every: int, shortest: int = SHORTEST
) -> NDArray[np.float64]:
    """The statistic at each look at each stream, were nothing ever cut.

    streams: (streams, rows), of which the first `earlier` are only taken in. Gives one column for
    each `every` rows after them.
    """
    count, length = streams.shape
    sums = np.zeros((count, length + 1))
    squares = np.zeros((count, length + 1))
    np.cumsum(streams, axis=1, out=sums[:, 1:])
    np.cumsum(streams**2, axis=1, out=squares[:, 1:])
    shape = Histogram()
    found = []
    for row in range(1, length + 1):
        shape.add(0.0)
        if row <= earlier or (row - earlier) % every:
            continue
        older = np.cumsum(np.array(shape.counts, dtype=np.int64))[:-1]
        older = older[(older >= shortest) & (row - older >= shortest)]
        if not len(older):
            found.append(np.full(count, -np.inf))
            continue
        mean = sums[:, row : row + 1] / row
        variance = np.maximum(squares[:, row : row + 1] / row - mean**2, 0.0)
        before = sums[:, older]
        difference = (sums[:, row : row + 1] - before) / (row - older) - before / older
        found.append(cut_statistic(np.abs(difference), older, row, variance).max(axis=1))
    return np.stack(found, axis=1)
