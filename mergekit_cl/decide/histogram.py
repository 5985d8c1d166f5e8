"""A window of numbers in few buckets: small for what is new, doubling for what is old."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

PER_SIZE = 5


@dataclass
class Histogram:
    """Buckets of 1, 2, 4, ... rows, oldest first, at most `per_size` of each size.

    sums: of each bucket's rows. squares: of their deviations from the bucket's mean. One bucket
    too many of a size merges the two oldest of it. Source: Datar et al. 2002; Bifet and Gavalda
    2007, section 4.
    """

    per_size: int = PER_SIZE
    counts: list[int] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ValueError for what is no histogram: states come back from files."""
        if not len(self.counts) == len(self.sums) == len(self.squares):
            raise ValueError("lists of different lengths")
        if self.per_size < 2 or min(self.counts, default=1) < 1 or min(self.squares, default=0) < 0:
            raise ValueError("a bucket of no rows, or of a negative sum of squares")

    def add(self, x: float) -> None:
        """Take one row in."""
        self.counts.append(1)
        self.sums.append(x)
        self.squares.append(0.0)
        end, size = len(self.counts), 1
        while end > self.per_size and self.counts[end - self.per_size - 1] == size:
            end -= self.per_size
            self._merge(end)
            size *= 2

    def _merge(self, newer: int) -> None:
        older = newer - 1
        size = self.counts[older]
        apart = (self.sums[newer] - self.sums[older]) / size
        self.squares[older] += self.squares[newer] + apart * apart * size / 2
        self.sums[older] += self.sums[newer]
        self.counts[older] *= 2
        del self.counts[newer], self.sums[newer], self.squares[newer]

    def variance(self) -> float:
        """Of all rows in the window, around their mean."""
        counts, sums = np.array(self.counts, dtype=np.float64), np.array(self.sums)
        total = counts.sum()
        between = counts @ (sums / counts - sums.sum() / total) ** 2
        return float((sum(self.squares) + between) / total)
