"""What a drift detector says when its statistic crosses the threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Crossing:
    """One detection.

    statistic > threshold. rows: how many of the newest rows, the one that raised it among them,
    the detector takes for those after the change.
    """

    direction: Direction
    statistic: float
    threshold: float
    rows: int
