"""CUSUM: is the level still that of the reference?"""

from __future__ import annotations

from dataclasses import dataclass, field

from mergekit_cl.decide.alarm import Crossing
from mergekit_cl.decide.two_sided import TwoSided

NAME = "cusum"


@dataclass
class Cusum:
    """Two-sided CUSUM against a reference whose level is 0 and stays there, on one stream.

    alarm where max(0, ... + x - delta) or max(0, ... - x - delta) > threshold. After an alarm the
    sums start over and the reference does not: it keeps telling while the level stays away.
    delta: half the shift that it finds fastest. Source: Page 1954.
    """

    delta: float
    threshold: float
    sums: TwoSided = field(default_factory=TwoSided)

    def update(self, x: float) -> Crossing | None:
        """Take one row in; tells of a change."""
        self.sums.add(x, self.delta)
        found = self.sums.crossing(self.threshold)
        if found is not None:
            self.sums = TwoSided()
        return found
