"""A gate's outcome for pipelines: JUnit XML, a comment in Markdown, workflow commands."""

from __future__ import annotations

from mergekit_cl.decide.gate import Decision
from mergekit_cl.gating.gate import Judged
from mergekit_cl.gating.run import Outcome
from mergekit_cl.report.annotations import workflow_command
from mergekit_cl.report.gate import HEAD, advice, cells, facts, reason, reasons
from mergekit_cl.report.junit_xml import Case, junit_xml
from mergekit_cl.report.junit_xml import Outcome as CaseOutcome
from mergekit_cl.report.markdown import code

MARK = {"accept": "✅", "reject": "❌", "inconclusive": "❔"}
CASE: dict[Decision, CaseOutcome] = {
    "accept": "passed",
    "reject": "failure",
    "inconclusive": "error",
}
"""An inconclusive comparison is a test that could not be done."""


def gate_junit(outcome: Outcome) -> str:
    """A test case per suite and model."""
    said = [outcome.verdict.decision, *(f"try: {line}" for line in advice(outcome))]
    cases = [_case(one) for one in outcome.verdict.judged]
    return junit_xml("clmerge gate", cases, outcome.seconds, said)


def gate_markdown(outcome: Outcome) -> str:
    """Decision, reasons, the table, what to do. Words from files stand in code spans."""
    decision = outcome.verdict.decision
    against = ", ".join(
        f"{role} {code(one.path)}"
        for role, one in outcome.measured.models.items()
        if role != "candidate"
    )
    lines = [
        f"### clmerge gate: {MARK[decision]} {decision}",
        "",
        f"{code(outcome.measured.models['candidate'].path)} against {against}",
        "",
        *(f"- {code(line)}" for line in reasons(outcome)),
        "",
        f"| {' | '.join(HEAD)} |",
        "|---|---|---:|---:|---|---:|---:|---:|---|",
        *(
            f"| {code(one[0])} | {' | '.join(one[1:])} |"
            for one in map(cells, outcome.verdict.judged)
        ),
        "",
        *(f"- {code(line)}" for line in facts(outcome)),
    ]
    if todo := advice(outcome):
        lines += ["", "What to do:", "", *(f"- {code(line)}" for line in todo)]
    return "\n".join(lines).strip() + "\n"


def gate_commands(outcome: Outcome) -> list[str]:
    """An error per comparison that rejects, a warning per one that cannot tell, else a notice."""
    title = "clmerge gate"
    path = outcome.measured.models["candidate"].path
    if outcome.verdict.decision == "accept":
        return [workflow_command("notice", f"{title}: accept", path)]
    return [
        workflow_command(
            "error" if one.comparison.decision == "reject" else "warning",
            f"{title}: {path}: {one.comparison.decision}",
            reason(one),
        )
        for one in outcome.verdict.judged
        if one.comparison.decision != "accept"
    ]


def _case(one: Judged) -> Case:
    decision = one.comparison.decision
    name = f"{one.suite} against {one.against}"
    return Case("clmerge.gate", name, CASE[decision], (reason(one),), decision)
