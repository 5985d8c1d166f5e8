"""Is a merge lossy, why, and what would help. Pure decisions on metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mergekit_cl.decide.policy import DEFAULT, LOSSY_BELOW, Policy, Thresholds, is_broken

ADVICE = {
    "survival": (
        "write float32: --dtype float32",
        "keep what rounding takes for the next merge: --carry",
    ),
    "rounding_error": ("write float32: --dtype float32",),
    "predicted_loss": ("give that model more weight: --weights",),
    "missing": ("merge those tensors too, or leave them out here: --exclude",),
}
OTHER_ADVICE = ("give that model more weight: --weights",)
ROUNDING = ("survival", "rounding_error")
TOLD = 5
"""Layers, and tensors, that reasons name before the rest are counted."""

Level = Literal["model", "layer", "tensor"]


@dataclass(frozen=True)
class ParentMetrics:
    """Model-level metrics against one parent.

    predicted_loss: nats per token, if calibrated. loss_rise: measured nats per token on rows, above
    the parent's. missing: tensors that the parent has and the merge lacks, where names can differ.
    """

    parent: str
    metrics: dict[str, float | None]
    predicted_loss: float | None
    loss_rise: float | None = None
    missing: int | None = None

    @property
    def values(self) -> dict[str, float | None]:
        """Everything a policy may hold the model to."""
        return {
            **self.metrics,
            "predicted_loss": self.predicted_loss,
            "loss_rise": self.loss_rise,
            "missing": self.missing,
        }


@dataclass(frozen=True)
class TensorMetrics:
    """Metrics of one tensor, or one layer, against one parent."""

    name: str
    parent: str
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Finding:
    """One threshold that is broken; `name` is empty for the whole model."""

    level: Level
    name: str
    parent: str
    metric: str
    value: float
    threshold: float


@dataclass(frozen=True)
class Verdict:
    """Whether the merge is lossy, in words a person can act on."""

    lossy: bool
    reasons: tuple[str, ...]
    advice: tuple[str, ...]


def judge(
    parents: Sequence[ParentMetrics],
    tensors: Iterable[TensorMetrics] = (),
    layers: Iterable[TensorMetrics] = (),
    *,
    policy: Policy = DEFAULT,
    carried: bool = False,
) -> Verdict:
    """Hold model, layers and tensors to a policy.

    carried: what rounding took is kept for the next merge, so it is not lost.
    """
    return conclude(broken(parents, tensors, layers, policy=policy, carried=carried))


def broken(
    parents: Sequence[ParentMetrics],
    tensors: Iterable[TensorMetrics] = (),
    layers: Iterable[TensorMetrics] = (),
    *,
    policy: Policy = DEFAULT,
    carried: bool = False,
) -> tuple[Finding, ...]:
    """Every threshold of a policy that is broken: of the model, of layers, of tensors."""

    def of(
        level: Level, name: str, parent: str, values: dict[str, float | None], limits: Thresholds
    ) -> Iterable[Finding]:
        for metric, limit in limits.items():
            value = values.get(metric)
            excused = carried and metric in ROUNDING
            if value is not None and is_broken(metric, value, limit) and not excused:
                yield Finding(level, name, parent, metric, value, limit)

    return (
        *(f for p in parents for f in of("model", "", p.parent, p.values, policy.model)),
        *(
            f
            for row in (layers if policy.layers else ())
            for f in of("layer", row.name, row.parent, row.metrics, policy.for_layer(row.name))
        ),
        *(
            f
            for row in (tensors if policy.tensors else ())
            for f in of("tensor", row.name, row.parent, row.metrics, policy.for_tensor(row.name))
        ),
    )


def conclude(findings: Sequence[Finding]) -> Verdict:
    """The verdict on a merge that breaks these thresholds, in words."""
    reasons: list[str] = []
    advice: list[str] = []
    for level in ("model", "layer", "tensor"):
        those = [finding for finding in findings if finding.level == level]
        told = those if level == "model" else those[:TOLD]
        reasons += [reason(finding) for finding in told]
        if len(those) > len(told):
            reasons.append(f"and {len(those) - len(told)} more {level}s break their thresholds")
        for finding in those:
            advice += ADVICE.get(finding.metric, OTHER_ADVICE)
    return Verdict(bool(reasons), tuple(reasons), tuple(dict.fromkeys(advice)))


def reason(finding: Finding) -> str:
    """One finding in words."""
    said = _said(finding)
    if finding.level == "model":
        return said
    return f"{'layer ' if finding.level == 'layer' else ''}{finding.name}: {said}"


def _said(finding: Finding) -> str:
    metric, value, threshold, parent = (
        finding.metric,
        finding.value,
        finding.threshold,
        finding.parent,
    )
    if metric == "survival":
        return (
            f"rounding kept {value:.0%} of the update from {parent} "
            f"(survival below {threshold:.0%})"
        )
    if metric == "predicted_loss":
        return f"predicted loss on {parent}'s data {value:.3f} nats per token (above {threshold:g})"
    if metric == "loss_rise":
        return f"measured loss {value:.3f} nats per token above {parent}'s (above {threshold:g})"
    if metric == "missing":
        return f"{value:.0f} tensors of {parent} are missing (above {threshold:g})"
    side = "below" if metric in LOSSY_BELOW else "above"
    return f"{metric} {value:.3g} from {parent} ({side} {threshold:g})"
