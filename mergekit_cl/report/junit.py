"""A check as JUnit XML: a test case per layer, and one per threshold of the model and parent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from xml.etree import ElementTree

from mergekit_cl.comparing.report import Report
from mergekit_cl.divergence.layers import layer_of
from mergekit_cl.divergence.verdict import Finding, reason
from mergekit_cl.report.text import shown

Case = tuple[str, str, list[str], bool]
"""Class, name, why it fails, whether it was held to anything."""


def junit(report: Report) -> str:
    """The document; characters that XML lacks are shown as escapes."""
    cases = [*_model(report), *_layers(report)]
    failures = sum(bool(why) for _, _, why, _ in cases)
    skipped = sum(not held for _, _, _, held in cases)
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        {
            "name": "clmerge check",
            "tests": str(len(cases)),
            "failures": str(failures),
            "errors": "0",
            "skipped": str(skipped),
            "time": f"{report.seconds:.3f}",
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": "localhost",
            "id": "0",
            "package": "clmerge",
        },
    )
    ElementTree.SubElement(suite, "properties")
    for group, name, why, held in cases:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": group, "name": shown(name), "time": "0"}
        )
        if why:
            text = "\n".join(map(shown, why))
            told = {"message": shown(why[0]), "type": "lossy"}
            ElementTree.SubElement(case, "failure", told).text = text
        elif not held:
            ElementTree.SubElement(case, "skipped", {"message": "not known"})
    verdict = report.divergence.verdict
    said = ["lossy" if verdict.lossy else "ok", *(f"try: {advice}" for advice in verdict.advice)]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(map(shown, said))
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _model(report: Report) -> Iterator[Case]:
    found = [one for one in report.findings if one.level == "model"]
    for parent in report.divergence.model:
        for metric in report.policy.model:
            why = [
                reason(one) for one in found if (one.parent, one.metric) == (parent.parent, metric)
            ]
            known = parent.values.get(metric) is not None
            yield "clmerge.model", f"{metric} against {parent.parent}", why, known


def _layers(report: Report) -> Iterator[Case]:
    why: dict[str, list[str]] = {row.name: [] for row in report.divergence.layers}
    for one in report.findings:
        if one.level != "model":
            why[_layer(one)].append(reason(one))
    for name, reasons in why.items():
        yield "clmerge.layers", name, reasons, True


def _layer(finding: Finding) -> str:
    return finding.name if finding.level == "layer" else layer_of(finding.name)
