"""The ratio of two sums over rows, such as nats per token, with its standard error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def ratio(values: Array, weights: Array) -> tuple[float, float | None]:
    """sum x / sum w and its standard error, sqrt(n / (n - 1) sum (x - r w)^2) / sum w.

    values, weights: (n,), one entry per row; the weights' sum is not 0. The error is None for fewer
    than two rows. Source: Cochran 1977, Sampling Techniques, section 6.4 (ratio estimators).
    """
    count, whole = len(values), math.fsum(weights)
    mean = math.fsum(values) / whole
    if count < 2:
        return mean, None
    spread = math.fsum(np.square(values - mean * weights))
    return mean, math.sqrt(count / (count - 1) * spread) / whole
