"""Whether a series that is said to be stable rises or falls."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from mergekit_cl.decide.autocorrelation import memory


@dataclass(frozen=True)
class Trend:
    """The straight line through a series: its ends, and its rise in standard errors.

    The error counts as many rows as are independent around the line, not all of them.
    """

    first: float
    last: float
    standard_errors: float


def trend(values: NDArray[np.float64]) -> Trend:
    """The line of least squares through a series of two rows or more."""
    rows = len(values)
    time = np.arange(rows) - (rows - 1) / 2
    square = float(time @ time)
    slope = float(time @ values) / square
    middle = float(values.mean())
    around = values - middle - slope * time
    error = sqrt(float(around @ around) / rows * memory(around).time / square)
    ends = middle - slope * (rows - 1) / 2, middle + slope * (rows - 1) / 2
    return Trend(*ends, slope / error if error > 0 else float(np.sign(slope)) * np.inf)
