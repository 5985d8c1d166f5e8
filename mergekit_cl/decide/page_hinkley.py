"""Page-Hinkley's test: has the level moved away from the mean so far?"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mergekit_cl.decide.alarm import Crossing
from mergekit_cl.decide.two_sided import TwoSided, statistic_path

NAME = "page-hinkley"
MINIMUM = 30


@dataclass
class PageHinkley:
    """Two-sided Page-Hinkley with its delta, on one stream.

        U += x - mean - delta     alarm where U - min U > threshold
        D += x - mean + delta     alarm where max D - D > threshold

    mean: of all rows so far, this one included, and of `rows` earlier ones where it does not begin
    at zero. No alarm before `minimum` rows. After an alarm it starts over, its mean too: it then
    tells of changes from the new level. delta, threshold: in the unit of x; without a delta the
    statistic is a random walk and alarms with certainty.
    """

    delta: float
    threshold: float
    minimum: int = MINIMUM
    rows: int = 0
    mean: float = 0.0
    sums: TwoSided = field(default_factory=TwoSided)

    def update(self, x: float) -> Crossing | None:
        """Take one row in; tells of a change."""
        self.rows += 1
        self.mean += (x - self.mean) / self.rows
        self.sums.add(x - self.mean, self.delta)
        found = self.sums.crossing(self.threshold) if self.rows >= self.minimum else None
        if found is not None:
            self.rows, self.mean, self.sums = 0, 0.0, TwoSided()
        return found


def page_hinkley_path(
    streams: NDArray[np.float64], delta: float, earlier: int
) -> NDArray[np.float64]:
    """The statistic after each row of each stream, were no alarm ever raised.

    streams: (streams, rows), after `earlier` rows whose mean is 0. Zero where the detector would
    not yet have told.
    """
    counts = earlier + np.arange(1, streams.shape[1] + 1)
    found = statistic_path(streams - np.cumsum(streams, axis=1) / counts, delta)
    found[:, counts < MINIMUM] = 0.0
    return found
