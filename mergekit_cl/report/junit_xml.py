"""JUnit XML from test cases."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from mergekit_cl.report.text import shown

Outcome = Literal["passed", "failure", "error", "skipped"]


@dataclass(frozen=True)
class Case:
    """group, name: what was tested. why: lines that explain an outcome other than `passed`.
    kind: the type of a failure or an error."""

    group: str
    name: str
    outcome: Outcome
    why: tuple[str, ...]
    kind: str


def junit_xml(title: str, cases: Sequence[Case], seconds: float, said: Sequence[str]) -> str:
    """The document of one suite; characters that XML lacks are shown as escapes.

    said: lines for system-out.
    """
    counts = Counter(case.outcome for case in cases)
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        {
            "name": title,
            "tests": str(len(cases)),
            "failures": str(counts["failure"]),
            "errors": str(counts["error"]),
            "skipped": str(counts["skipped"]),
            "time": f"{seconds:.3f}",
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": "localhost",
            "id": "0",
            "package": "clmerge",
        },
    )
    ElementTree.SubElement(suite, "properties")
    for one in cases:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": one.group, "name": shown(one.name), "time": "0"}
        )
        if one.outcome == "skipped":
            ElementTree.SubElement(case, "skipped", {"message": shown(one.why[0])})
        elif one.outcome != "passed":
            told = {"message": shown(one.why[0]), "type": one.kind}
            ElementTree.SubElement(case, one.outcome, told).text = "\n".join(map(shown, one.why))
    ElementTree.SubElement(suite, "system-out").text = "\n".join(map(shown, said))
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'
