"""Is a merge lossy, why, and what would help. Pure decisions on metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergekit_cl.decide.policy import DEFAULT, LOSSY_BELOW, Policy, is_broken

ADVICE = {
    "survival": (
        "write float32: --dtype float32",
        "keep what rounding takes for the next merge: --carry",
    ),
    "rounding_error": ("write float32: --dtype float32",),
    "predicted_loss": ("give that model more weight: --weights",),
}
OTHER_ADVICE = ("give that model more weight: --weights",)
ROUNDING = ("survival", "rounding_error")
TENSORS_TOLD = 5


@dataclass(frozen=True)
class ParentMetrics:
    """Model-level metrics against one parent; `predicted_loss` in nats per token if calibrated."""

    parent: str
    metrics: dict[str, float | None]
    predicted_loss: float | None


@dataclass(frozen=True)
class TensorMetrics:
    """Metrics of one tensor against one parent."""

    name: str
    parent: str
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Verdict:
    """Whether the merge is lossy, in words a person can act on."""

    lossy: bool
    reasons: tuple[str, ...]
    advice: tuple[str, ...]


def judge(
    parents: Sequence[ParentMetrics],
    tensors: Iterable[TensorMetrics] = (),
    *,
    policy: Policy = DEFAULT,
    carried: bool = False,
) -> Verdict:
    """Hold model and tensors to a policy.

    carried: what rounding took is kept for the next merge, so it is not lost.
    """
    reasons: list[str] = []
    advice: list[str] = []
    for parent in parents:
        values = {**parent.metrics, "predicted_loss": parent.predicted_loss}
        for metric, threshold in policy.model.items():
            if is_broken(metric, values[metric], threshold) and not (
                carried and metric in ROUNDING
            ):
                reasons.append(_reason(metric, values[metric] or 0.0, threshold, parent.parent))
                advice += ADVICE.get(metric, OTHER_ADVICE)
    broken = [
        f"{tensor.name}: {_reason(metric, tensor.metrics[metric] or 0.0, limit, tensor.parent)}"
        for tensor in tensors
        for metric, limit in policy.for_tensor(tensor.name).items()
        if is_broken(metric, tensor.metrics[metric], limit) and not (carried and metric in ROUNDING)
    ]
    reasons += broken[:TENSORS_TOLD]
    if len(broken) > TENSORS_TOLD:
        reasons.append(f"and {len(broken) - TENSORS_TOLD} more tensors break their thresholds")
    if broken:
        advice += OTHER_ADVICE
    return Verdict(bool(reasons), tuple(reasons), tuple(dict.fromkeys(advice)))


def _reason(metric: str, value: float, threshold: float, parent: str) -> str:
    if metric == "survival":
        return (
            f"rounding kept {value:.0%} of the update from {parent} "
            f"(survival below {threshold:.0%})"
        )
    if metric == "predicted_loss":
        return f"predicted loss on {parent}'s data {value:.3f} nats per token (above {threshold:g})"
    side = "below" if metric in LOSSY_BELOW else "above"
    return f"{metric} {value:.3g} from {parent} ({side} {threshold:g})"
