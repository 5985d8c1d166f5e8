"""From sums to the metrics people read. Undefined is None, never NaN or 0."""

from __future__ import annotations

import math

from mergekit_cl.divergence.sums import Sums

NAMES = (
    "rel_l2",
    "cosine",
    "max_abs",
    "changed",
    "sign_conflict",
    "survival",
    "rounding_error",
    "predicted_kl",
    "fallback",
)


def metrics(sums: Sums) -> dict[str, float | None]:
    """Every metric of docs/mathematics.md that these sums define; `predicted_kl` per example."""
    # Where NaN or Inf were let through, nothing can be said of distances.
    if not math.isfinite(sums.difference_square + sums.parent_square + sums.merged_square):
        return {**dict.fromkeys(NAMES), "changed": _ratio(sums.changed, sums.count)}
    difference = math.sqrt(sums.difference_square)
    norms = math.sqrt(sums.parent_square) * math.sqrt(sums.merged_square)
    inner = (sums.parent_square + sums.merged_square - sums.difference_square) / 2
    update, survived = sums.update_square, sums.update_survived
    survival = rounding_error = None
    if update and survived is not None and sums.rounding_square is not None:
        survival = survived / update
        rounding_error = math.sqrt(sums.rounding_square / update)
    predicted = sums.fisher_square
    # An entry that changed and has no Fisher may have cost anything.
    if predicted is not None and not sums.fisher_gap[1]:
        predicted /= 2
    else:
        predicted = None
    found = {
        "rel_l2": _ratio(difference, math.sqrt(sums.parent_square)),
        "cosine": None if not norms else max(-1.0, min(1.0, inner / norms)),
        "max_abs": sums.largest if sums.count else None,
        "changed": _ratio(sums.changed, sums.count),
        "sign_conflict": _conflict(sums),
        "survival": survival,
        "rounding_error": rounding_error,
        "predicted_kl": predicted,
        "fallback": None if sums.fallback is None else _ratio(sums.fallback, sums.count),
    }
    return {
        name: value if value is None or math.isfinite(value) else None
        for name, value in found.items()
    }


def _conflict(sums: Sums) -> float | None:
    if sums.conflict is None or not sums.conflict_whole:
        return None
    return min(1.0, max(0.0, sums.conflict / sums.conflict_whole))  # rounding may leave 0 by a bit


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
