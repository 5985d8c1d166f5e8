"""A check as workflow commands of GitHub Actions: notes on the run that everybody sees."""

from __future__ import annotations

from mergekit_cl.comparing.report import Report
from mergekit_cl.divergence.verdict import reason
from mergekit_cl.report.comparison import name_words

MOST = 10
"""GitHub shows this many errors of one step."""


def workflow_commands(report: Report) -> list[str]:
    """One line per broken threshold, or a notice where all is well."""
    if not report.findings:
        parents = ", ".join(parent.path for parent in report.divergence.parents)
        return [
            workflow_command("notice", "clmerge check: ok", f"{report.merged} against {parents}")
        ]
    reasons = [reason(one) for one in report.findings]
    told = reasons if len(reasons) <= MOST else reasons[: MOST - 1]
    lines = [
        workflow_command("error", f"clmerge check: {report.merged} is lossy", one) for one in told
    ]
    if len(reasons) > len(told):
        more = f"and {len(reasons) - len(told)} more thresholds are broken"
        lines.append(workflow_command("error", "clmerge check", more))
    return lines


def workflow_command(kind: str, title: str, message: str) -> str:
    """One line that GitHub shows on the run; kind: "error", "warning" or "notice"."""
    escaped = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={escaped}::{_data(message)}"


def _data(text: str) -> str:
    """What may stand in a message; other control characters are shown as escapes."""
    whole = "\n".join(name_words(line) for line in text.replace("\r\n", "\n").split("\n"))
    return whole.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
