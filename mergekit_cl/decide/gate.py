"""Whether a candidate is at most a margin worse than another model: non-inferiority, by row."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from mergekit_cl.decide.bootstrap import DRAWS, bounds
from mergekit_cl.decide.mcnemar import McNemar, mcnemar
from mergekit_cl.decide.pairing import Rows, paired
from mergekit_cl.decide.ratio import ratio

Decision = Literal["accept", "reject", "inconclusive"]

MARGIN = 0.02
"""Nats per token."""

ALPHA = 0.05
MIN_ROWS = 500
ENOUGH_POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """A candidate against another model on the same rows; all losses in nats per token.

    delta: how much more the candidate has. interval: its one-sided bounds, each at `alpha`.
    power: the probability of `accept` if the true delta is 0, which is 0 for fewer than `min_rows`
    rows. rows_needed: for a power of 80 %; None where nothing is known of how rows differ.
    """

    rows: int
    tokens: int
    new_loss: float
    old_loss: float
    delta: float
    standard_error: float | None
    interval: tuple[float, float] | None
    margin: float
    alpha: float
    min_rows: int
    power: float
    rows_needed: int | None
    decision: Decision
    mcnemar: McNemar | None


def compare(
    new: Rows,
    old: Rows,
    *,
    margin: float = MARGIN,
    alpha: float = ALPHA,
    min_rows: int = MIN_ROWS,
    seed: int = 0,
    draws: int = DRAWS,
) -> Comparison:
    """Compare on paired rows, in any order, and decide.

    accept: the upper bound of delta is below the margin. reject: the lower bound is above it, or
    the upper bound is not below it although a candidate that is no worse would have been accepted
    with a probability of 80 % or more. inconclusive: otherwise, and for fewer than `min_rows` rows.
    The result depends on the set of rows, not on their order. Raises what `paired` raises, and
    ValueError for options out of range.
    """
    if not (margin > 0 and 0 < alpha < 0.5 and draws >= 1):
        raise ValueError(f"margin {margin}, alpha {alpha}, draws {draws}")
    new, old = paired(new, old)
    tokens = new.tokens.astype(np.float64)
    count = len(new.ids)
    right = None if new.correct is None or old.correct is None else (new.correct, old.correct)
    both = None if right is None else mcnemar(*right)
    difference = new.nats - old.nats
    found = None if count < 2 else bounds(difference, tokens, alpha, draws=draws, seed=seed)
    power = 0.0
    needed: int | None = None
    decision: Decision = "inconclusive"
    if found is not None:
        width = found.upper - found.value
        needed = max(min_rows, rows_for_power(count, margin, width, found.error))
        if count >= min_rows:
            power = power_of(margin, width, found.error)
            decision = decide_by(found.lower, found.upper, margin, power)
    return Comparison(
        rows=count,
        tokens=int(new.tokens.sum()),
        new_loss=ratio(new.nats, tokens)[0],
        old_loss=ratio(old.nats, tokens)[0],
        delta=ratio(difference, tokens)[0],
        standard_error=None if found is None else found.error,
        interval=None if found is None else (found.lower, found.upper),
        margin=margin,
        alpha=alpha,
        min_rows=min_rows,
        power=power,
        rows_needed=needed,
        decision=decision,
        mcnemar=both,
    )


def decide(decisions: Iterable[Decision]) -> Decision:
    """Of several comparisons: reject if one rejects, accept if all accept.

    All must accept, so no correction for their number is due: the candidate is accepted wrongly
    with a probability of at most alpha (Berger 1982, intersection-union test).
    """
    found = set(decisions)
    if "reject" in found:
        return "reject"
    return "accept" if found == {"accept"} else "inconclusive"


def decide_by(lower: float, upper: float, margin: float, power: float) -> Decision:
    """The decision of one comparison that has rows enough."""
    if upper < margin:
        return "accept"
    return "reject" if lower > margin or power >= ENOUGH_POWER else "inconclusive"


def power_of(margin: float, width: float, error: float) -> float:
    """P(upper bound < margin | true delta = 0) for an estimate of normal error.

    width: how far the upper bound lies above the estimate. Phi((margin - width) / error).
    """
    if error == 0:
        return 1.0
    return NormalDist().cdf((margin - width) / error)


def rows_for_power(
    count: int, margin: float, width: float, error: float, power: float = ENOUGH_POWER
) -> int:
    """How many rows like these `count` reach a power; widths and errors fall with their root."""
    reach = width + NormalDist().inv_cdf(power) * error
    return math.ceil(count * (reach / margin) ** 2)
