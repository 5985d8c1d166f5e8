"""A check as Markdown: the comment that a pull request gets."""

from __future__ import annotations

import re

from mergekit_cl.comparing.report import Report
from mergekit_cl.divergence.summary import worst
from mergekit_cl.report.amounts import number
from mergekit_cl.report.comparison import COLUMNS, mean_words, order, rounding_words, verdict_words
from mergekit_cl.report.text import shown


def markdown(report: Report, *, top: int) -> str:
    """Verdict, reasons, the worst layers, what to do. Words from files stand in code spans."""
    verdict = report.divergence.verdict
    parents = ", ".join(code(parent.path) for parent in report.divergence.parents)
    lines = [
        f"### clmerge check: {'❌ lossy' if verdict.lossy else '✅ ok'}",
        "",
        f"{code(report.merged)} against {parents}",
        "",
        *(f"- {code(line)}" for line in verdict_words(report)),
        "",
        *_layers(report, top),
        *_measured(report),
    ]
    words = [*rounding_words(report), *report.notes]
    lines += [*(f"- {code(line)}" for line in words), ""]
    if verdict.advice:
        lines += ["What to do:", "", *(f"- {code(advice)}" for advice in verdict.advice), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def code(text: str) -> str:
    """A code span of one line, in which nothing is markup, also inside a table."""
    # A table is cut at `|` before code is looked for.
    safe = shown(text).replace("|", "\\x7c")
    longest = max((len(run) for run in re.findall(r"`+", safe)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if safe.startswith("`") or safe.endswith("`") or not safe.strip() else ""
    return f"{fence}{pad}{safe}{pad}{fence}"


def _layers(report: Report, top: int) -> list[str]:
    metric = order(report)
    rows = worst(report.divergence.layers, metric, top)
    columns = [c for c in COLUMNS if any(row.metrics[c] is not None for row in rows)]
    if not rows or not columns:
        return []
    head = ["layer", "parent", *columns]
    return [
        f"The layers of worst {code(metric)}:",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * 2}{'---:|' * len(columns)}",
        *(
            f"| {code(row.name)} | {code(row.parent)} | "
            f"{' | '.join(number(row.metrics[column]) for column in columns)} |"
            for row in rows
        ),
        "",
    ]


def _measured(report: Report) -> list[str]:
    found = report.measured
    if found is None:
        return []
    return [
        f"Measured on {found.rows} rows, {found.tokens} tokens:",
        "",
        "| model | nats per token | merged less this | accuracy |",
        "|---|---:|---:|---:|",
        *(
            f"| {code(one.path)} | {mean_words(one.loss)} | {mean_words(one.rise, signed=True)} | "
            f"{mean_words(one.accuracy)} |"
            for one in (found.merged, *found.parents)
        ),
        "",
    ]
