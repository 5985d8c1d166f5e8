"""Weights to look at, and which of them to take."""

from __future__ import annotations

from collections.abc import Sequence

Weights = tuple[float, ...]

DIGITS = 4
"""Weights are rounded to so many decimals: short to type, and closer than any of them matters."""


def grid(inputs: int, points: int) -> list[Weights]:
    """Weights of `inputs` models that a sweep of `points` looks at.

    Two models: `points` evenly spaced shares of the second, from 0 to 1. More: for each model
    `points` of its shares from 0 to 1, the others dividing the rest equally, so from the middle
    of the opposite face through equal weights to the model alone; and equal weights. None twice.
    """
    shares = [number / (points - 1) for number in range(points)]
    if inputs == 2:
        return [rounded((1 - share, share)) for share in shares]
    found = [rounded([1 / inputs] * inputs)]
    for k in range(inputs):
        for share in shares:
            rest = (1 - share) / (inputs - 1)
            found.append(rounded([share if j == k else rest for j in range(inputs)]))
    return list(dict.fromkeys(found))


def rounded(weights: Sequence[float]) -> Weights:
    """Weights as a person would type them."""
    return tuple(round(weight, DIGITS) for weight in weights)


def best_point(points: Sequence[Weights], losses: Sequence[Sequence[float]]) -> int:
    """The number of the point whose worst loss is smallest; losses: one per parent, per point.

    Of equal ones that of the smaller sum, then that of the more equal weights, then the first.
    """
    return min(
        range(len(points)),
        key=lambda n: (max(losses[n]), sum(losses[n]), sum(w * w for w in points[n]), n),
    )
