"""A check as JUnit XML: a test case per layer, and one per threshold of the model and parent."""

from __future__ import annotations

from collections.abc import Iterator

from mergekit_cl.comparing.report import Report
from mergekit_cl.divergence.layers import layer_of
from mergekit_cl.divergence.verdict import Finding, reason
from mergekit_cl.report.junit_xml import Case, Outcome, junit_xml


def junit(report: Report) -> str:
    """The document."""
    verdict = report.divergence.verdict
    said = ["lossy" if verdict.lossy else "ok", *(f"try: {advice}" for advice in verdict.advice)]
    return junit_xml("clmerge check", [*_model(report), *_layers(report)], report.seconds, said)


def _model(report: Report) -> Iterator[Case]:
    found = [one for one in report.findings if one.level == "model"]
    for parent in report.divergence.model:
        for metric in report.policy.model:
            why = [
                reason(one) for one in found if (one.parent, one.metric) == (parent.parent, metric)
            ]
            known = parent.values.get(metric) is not None
            held: Outcome = "passed" if known else "skipped"
            yield Case(
                "clmerge.model",
                f"{metric} against {parent.parent}",
                "failure" if why else held,
                tuple(why) or ("not known",),
                "lossy",
            )


def _layers(report: Report) -> Iterator[Case]:
    why: dict[str, list[str]] = {row.name: [] for row in report.divergence.layers}
    for one in report.findings:
        if one.level != "model":
            why[_layer(one)].append(reason(one))
    for name, reasons in why.items():
        yield Case(
            "clmerge.layers", name, "failure" if reasons else "passed", tuple(reasons), "lossy"
        )


def _layer(finding: Finding) -> str:
    return finding.name if finding.level == "layer" else layer_of(finding.name)
