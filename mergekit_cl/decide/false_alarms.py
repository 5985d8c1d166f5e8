"""The threshold at which a detector raises false alarms as rarely as asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Records:
    """What one stream without a change says of all thresholds at once.

    values: each new height of the statistic, rising. rows: the row at which it was reached, from 1.
    """

    values: NDArray[np.float64]
    rows: NDArray[np.int64]

    def first_above(self, threshold: float) -> int | None:
        """The row of the first alarm with this threshold."""
        at = int(np.searchsorted(self.values, threshold, side="right"))
        return int(self.rows[at]) if at < len(self.rows) else None


def records(statistics: NDArray[np.float64], every: int = 1) -> list[Records]:
    """The records of each stream of (streams, looks); every: rows per look."""
    highest = np.maximum.accumulate(statistics, axis=1)
    before = np.concatenate([np.full((len(highest), 1), -np.inf), highest[:, :-1]], axis=1)
    return [
        Records(path[fresh], every * (1 + np.flatnonzero(fresh)))
        for path, fresh in zip(highest, highest > before, strict=True)
    ]


def mean_time(streams: Iterable[Records], rows: int, threshold: float) -> float:
    """Rows per false alarm: rows watched over alarms, each stream until its first or its end.

    The estimate of a mean time by streams that are cut off after `rows`; infinite without alarms.
    """
    watched, alarms = 0, 0
    for stream in streams:
        first = stream.first_above(threshold)
        watched += rows if first is None else first
        alarms += first is not None
    return watched / alarms if alarms else float("inf")


def threshold_for(streams: list[Records], rows: int, arl: float) -> float:
    """The smallest threshold at which a false alarm comes every `arl` rows or more rarely."""
    heights = np.unique(np.concatenate([stream.values for stream in streams]))
    low, high = 0, len(heights) - 1
    while low < high:
        middle = (low + high) // 2
        if mean_time(streams, rows, float(heights[middle])) < arl:
            low = middle + 1
        else:
            high = middle
    return float(heights[low])
