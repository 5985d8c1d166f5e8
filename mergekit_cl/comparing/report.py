"""What a comparison is asked, and what it finds: the one value that every renderer reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergekit_cl.comparing.baseline import Baseline
from mergekit_cl.comparing.pairing import Pairing
from mergekit_cl.decide.policy import DEFAULT, Policy
from mergekit_cl.divergence.summary import Divergence, to_json
from mergekit_cl.divergence.verdict import Finding
from mergekit_cl.plan import Selection

if TYPE_CHECKING:
    from mergekit_cl.comparing.measured import Data, Measured, MeasuredModel


@dataclass(frozen=True)
class Request:
    """What to compare and how.

    fishers: a sidecar per parent, or none: those beside the parents count. base: what updates are
    measured from. policy: what counts as lossy. baseline: only what is worse than there counts.
    device: where the models of `data` run; tensors are compared on the CPU.
    """

    merged: str
    parents: tuple[str, ...]
    fishers: tuple[str, ...] = ()
    base: str | None = None
    selection: Selection = field(default_factory=Selection)
    policy: Policy = DEFAULT
    baseline: Baseline | None = None
    data: Data | None = None
    device: str = "auto"
    threads: int | None = None
    memory: int | None = None
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class Overlap:
    """How a parent's tensors meet those of the merged checkpoint.

    differing: tensors that are no floats and not equal.
    """

    parent: str
    pairing: Pairing
    differing: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What a comparison found; `divergence` holds the verdict.

    findings: broken thresholds that count; known: those that were as bad in the baseline.
    described: dtype and shape of the merged tensors.
    """

    merged: str
    divergence: Divergence
    overlaps: tuple[Overlap, ...]
    findings: tuple[Finding, ...]
    known: tuple[Finding, ...]
    policy: Policy
    baseline: str | None
    measured: Measured | None
    notes: tuple[str, ...]
    nbytes: int
    seconds: float
    described: Mapping[str, tuple[str, tuple[int, ...]]]


def document(report: Report) -> dict[str, Any]:
    """The JSON document: "clmerge.divergence/1", with what only a comparison knows."""
    divergence = report.divergence
    base = to_json(divergence)
    by_parent = [
        {**row, "loss_rise": one.loss_rise, "missing": one.missing}
        for row, one in zip(base["model_by_parent"], divergence.model, strict=True)
    ]
    return {
        **base,
        "merged": report.merged,
        "model_by_parent": by_parent,
        "overlap": [_overlap(overlap) for overlap in report.overlaps],
        "measured": None if report.measured is None else _measured(report.measured),
        "policy": report.policy.to_json(),
        "findings": _findings(report.findings),
        "baseline": report.baseline,
        "known": _findings(report.known),
        "notes": list(report.notes),
        "bytes": report.nbytes,
        "seconds": round(report.seconds, 3),
    }


def _overlap(overlap: Overlap) -> dict[str, Any]:
    pairing = overlap.pairing
    return {
        "parent": overlap.parent,
        "compared": len(pairing.names),
        "only_merged": list(pairing.only_merged),
        "only_parent": list(pairing.only_parent),
        "shapes": [
            {"name": one.name, "merged": list(one.merged), "parent": list(one.parent)}
            for one in pairing.shapes
        ],
        "equal": len(pairing.others) - len(overlap.differing),
        "differing": list(overlap.differing),
    }


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "level": one.level,
            "name": one.name,
            "parent": one.parent,
            "metric": one.metric,
            "value": one.value,
            "threshold": one.threshold,
        }
        for one in findings
    ]


def _measured(measured: Measured) -> dict[str, Any]:
    return {
        "rows": measured.rows,
        "tokens": measured.tokens,
        "data_digest": measured.data_digest,
        "merged": _model(measured.merged),
        "parents": [
            {
                "parent": one.path,
                **_model(one),
                "rise": one.rise.value if one.rise else None,
                "rise_standard_error": one.rise.standard_error if one.rise else None,
            }
            for one in measured.parents
        ],
    }


def _model(one: MeasuredModel) -> dict[str, Any]:
    right = one.accuracy
    return {
        "loss": one.loss.value,
        "standard_error": one.loss.standard_error,
        "accuracy": right.value if right else None,
        "accuracy_standard_error": right.standard_error if right else None,
    }
