"""How likely a gate will be able to decide, judged before there is a candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from mergekit_cl.decide.gate import power_of, rows_for_power

CHANGE = 0.5
"""Spread of how much a row's loss changes over the spread of rows' losses, assumed: 0.5 to 0.65
were seen for SmolLM2 after 20 steps on another text."""

SPREAD = 0.5
"""Nats per token by which rows' losses spread, assumed where nothing was measured: that of SmolLM2
on rows of 128 tokens."""


@dataclass(frozen=True)
class Foresight:
    """power: P(accept) if the update is no worse. rows_needed: for a power of 80 %."""

    power: float
    rows_needed: int


def foresee(rows: int, spread: float, *, margin: float, alpha: float, min_rows: int) -> Foresight:
    """What `decide.gate.compare` can be expected to say of a harmless update on `rows` rows.

    spread: standard deviation of rows' losses in nats per token. The mean change is taken to be
    normal with a standard error of `CHANGE * spread / sqrt(rows)`.
    """
    if rows < 1:
        return Foresight(0.0, max(min_rows, _needed(spread, margin, alpha)))
    error = CHANGE * spread / math.sqrt(rows)
    width = NormalDist().inv_cdf(1 - alpha) * error
    power = power_of(margin, width, error) if rows >= min_rows else 0.0
    return Foresight(power, max(min_rows, rows_for_power(rows, margin, width, error)))


def _needed(spread: float, margin: float, alpha: float) -> int:
    error = CHANGE * spread
    return rows_for_power(1, margin, NormalDist().inv_cdf(1 - alpha) * error, error)
