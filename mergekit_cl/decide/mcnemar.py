"""Whether one of two classifiers is right more often, by the rows on which they differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class McNemar:
    """better, worse: rows that only the new, only the old classifier gets right.

    p_value: two-sided, of so uneven a split where both are equally good.
    """

    better: int
    worse: int
    p_value: float


def mcnemar(new: Flags, old: Flags) -> McNemar:
    """The exact test on paired 0/1 results: new, old are (n,), whether each row was right.

    2 P(X <= min(b, c)) for X ~ Binomial(b + c, 1/2), at most 1; no normal approximation.
    Source: McNemar 1947; the exact form is the sign test.
    """
    better = int(np.count_nonzero(new & ~old))
    worse = int(np.count_nonzero(old & ~new))
    return McNemar(better, worse, min(1.0, 2 * _at_most(min(better, worse), better + worse)))


def _at_most(count: int, trials: int) -> float:
    """P(X <= count) for X ~ Binomial(trials, 1/2)."""
    logarithm = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    largest = math.exp(logarithm - trials * math.log(2))
    # C(n, k-1) = C(n, k) k / (n - k + 1): from the largest term down.
    k = np.arange(count, 0, -1, dtype=np.float64)
    return largest * (1.0 + float(np.cumprod(k / (trials - k + 1)).sum()))
