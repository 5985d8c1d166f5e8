"""Means of held-out scores and paired differences between models.

A score is a sum over a row and the number of units it sums over: nats and tokens of a text, or
right answers and 1. Two models are compared on the same rows, row by row: how hard a row is cancels
out, and differences far smaller than the spread of the scores become visible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """Per row: `sums` of the score and `units` it was summed over."""

    sums: tuple[float, ...]
    units: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Score per unit."""
        return sum(self.sums) / sum(self.units)


@dataclass(frozen=True)
class Difference:
    """A difference per unit and its standard error (nan from a single row)."""

    value: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether it is more than two standard errors away from 0."""
        return abs(self.value) > 2 * self.error


def difference(new: Scores, old: Scores) -> Difference:
    """`new` less `old` per unit, over the same rows.

        d = sum(new_i - old_i) / sum(units_i)
        se = sqrt(n / (n - 1) * sum((new_i - old_i - d * units_i)^2)) / sum(units_i)

    The linearised standard error of a ratio (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    if new.units != old.units:
        raise ValueError("the models were not scored on the same rows")
    gains = [a - b for a, b in zip(new.sums, old.sums, strict=True)]
    units, rows = sum(new.units), len(new.units)
    value = sum(gains) / units
    if rows < 2:
        return Difference(value, math.nan)
    squares = sum((g - value * u) ** 2 for g, u in zip(gains, new.units, strict=True))
    return Difference(value, math.sqrt(rows / (rows - 1) * squares) / units)


def mean_difference(parts: Sequence[Difference]) -> Difference:
    """The mean over separate texts, each of which counts the same."""
    value = sum(part.value for part in parts) / len(parts)
    return Difference(value, math.sqrt(sum(part.error**2 for part in parts)) / len(parts))


def against(
    scores: Mapping[str, Mapping[str, Scores]], new: str, old: str
) -> dict[str, Difference]:
    """{text: difference} of two models, and under `mean` that of the texts' mean."""
    parts = {text: difference(scores[new][text], scores[old][text]) for text in scores[new]}
    return parts | {"mean": mean_difference(list(parts.values()))}
