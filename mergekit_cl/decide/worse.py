"""Whether a metric got worse since an earlier release."""

from __future__ import annotations

from mergekit_cl.decide.policy import LOSSY_BELOW

NOISE = 1e-12
"""Of a sum in float64: what is not a difference at all."""


def is_worse(metric: str, value: float, before: float, tolerance: float) -> bool:
    """Whether a value is worse than before by more than a share of what was before.

    A cosine counts by its distance from 1: 0.99 is ten times as far as 0.999.
    """
    if metric == "cosine":
        value, before = 1 - value, 1 - before
    elif metric in LOSSY_BELOW:
        value, before = -value, -before
    return value - before > tolerance * abs(before) + NOISE
