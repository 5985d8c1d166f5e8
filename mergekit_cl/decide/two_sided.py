"""Sums of deviations on both sides, each started anew where it would fall below zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_cl.decide.alarm import Crossing


@dataclass
class TwoSided:
    """The sums of Page's test after some rows, in the unit of the deviations.

        up   <- max(0, up   + deviation - delta)
        down <- max(0, down - deviation - delta)

    `up` is U - min U and `down` is max D - D of Page-Hinkley's sums U and D, with the sums' own
    growth left out, so that an endless stream loses no digits. up_rows, down_rows: rows since the
    sum was last zero. Source: Page 1954.
    """

    up: float = 0.0
    down: float = 0.0
    up_rows: int = 0
    down_rows: int = 0

    def add(self, deviation: float, delta: float) -> None:
        """Take one row in."""
        self.up = max(0.0, self.up + deviation - delta)
        self.down = max(0.0, self.down - deviation - delta)
        self.up_rows = self.up_rows + 1 if self.up else 0
        self.down_rows = self.down_rows + 1 if self.down else 0

    def crossing(self, threshold: float) -> Crossing | None:
        """The side that is above the threshold, the higher one where both are."""
        if self.up > threshold and self.up >= self.down:
            return Crossing("up", self.up, threshold, self.up_rows)
        if self.down > threshold:
            return Crossing("down", self.down, threshold, self.down_rows)
        return None


def statistic_path(deviations: NDArray[np.float64], delta: float) -> NDArray[np.float64]:
    """The larger of both sums after each row of each stream, were no alarm ever raised.

    deviations: (streams, rows); the result has their shape.
    """
    highest = np.zeros_like(deviations)
    for sign in (1.0, -1.0):
        total = np.cumsum(sign * deviations - delta, axis=1)
        lowest = np.minimum(np.minimum.accumulate(total, axis=1), 0.0)
        np.maximum(highest, total - lowest, out=highest)
    return highest
