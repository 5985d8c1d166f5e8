"""Is a merge lossy, why, and what would help. Pure decisions on model-level metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SURVIVAL = 0.5
PREDICTED_LOSS = 0.02
"""Nats per token; applies only to a parent whose sidecar carries a calibration."""


@dataclass(frozen=True)
class ParentMetrics:
    """Model-level metrics against one parent; `predicted_loss` in nats per token if calibrated."""

    parent: str
    metrics: dict[str, float | None]
    predicted_loss: float | None


@dataclass(frozen=True)
class Verdict:
    """Whether the merge is lossy, in words a person can act on."""

    lossy: bool
    reasons: tuple[str, ...]
    advice: tuple[str, ...]


def judge(parents: Sequence[ParentMetrics], *, carried: bool = False) -> Verdict:
    """Apply the default thresholds to survival and, where calibrated, predicted loss.

    carried: what rounding took is kept for the next merge, so a low survival loses nothing.
    """
    reasons, advice = [], []
    for parent in parents:
        survival = parent.metrics["survival"]
        if survival is not None and survival < SURVIVAL and not carried:
            reasons.append(
                f"rounding kept {survival:.0%} of the update from {parent.parent} "
                f"(survival below {SURVIVAL:.0%})"
            )
            advice.append("write float32: --dtype float32")
            advice.append("keep what rounding takes for the next merge: --carry")
        loss = parent.predicted_loss
        if loss is not None and loss > PREDICTED_LOSS:
            reasons.append(
                f"predicted loss on {parent.parent}'s data {loss:.3f} nats per token "
                f"(above {PREDICTED_LOSS})"
            )
            advice.append("give that model more weight: --weights")
    return Verdict(bool(reasons), tuple(reasons), tuple(dict.fromkeys(advice)))
