"""What benchmarks/continual.py measured, as the tables of docs/continual.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.continual_suites import SUITES, Cell, Suite
from mergekit_cl.decide.task_matrix import Summary, summarise

PAGE = Path(__file__).resolve().parent.parent / "docs/continual.md"
BEGIN, END = "<!-- the tables: python benchmarks/continual.py --write -->", "<!-- end -->"

Matrix = Sequence[Sequence[float | None]]


def tables(results: Mapping[Cell, Matrix], shown: str = "") -> str:
    """One table per suite; a dash where a cell was not run.

    shown: tables of an earlier run, of which those of suites without any result are kept.
    """
    run = {cell.suite.name for cell in results}
    parts = {part.partition("\n")[0]: part.strip() for part in shown.split("### ")}
    return "\n\n".join(
        table(suite, results)
        if suite.name in run or suite.title not in parts
        else f"### {parts[suite.title]}"
        for suite in SUITES
    )


def table(suite: Suite, results: Mapping[Cell, Matrix]) -> str:
    """Rows are methods; per setting the average accuracy and the forgetting, in percent."""
    found: dict[tuple[str, str], list[Summary]] = {}
    for cell, matrix in results.items():
        if cell.suite == suite:
            key = cell.setting, cell.method.name
            found.setdefault(key, []).append(summarise(matrix, better="higher"))
    heads = [f"{setting}-incremental | forgotten" for setting in suite.settings]
    lines = [f"### {suite.title}", "", f"| method | {' | '.join(heads)} |"]
    lines.append("| --- |" + " ---: | ---: |" * len(suite.settings))
    for method in suite.methods():
        entries = []
        for setting in suite.settings:
            mine = found.get((setting, method.name), [])
            entries.append(in_percent([one.average for one in mine]))
            entries.append(in_percent([one.forgetting for one in mine]))
        lines.append(f"| {method.name} | {' | '.join(entries)} |")
    return "\n".join(lines)


def in_percent(values: Sequence[float | None]) -> str:
    """Mean and standard error over seeds."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{round(statistics.mean(known), 1) + 0.0:.1f}"  # never -0.0
    if len(known) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(known) / math.sqrt(len(known)):.1f}"


def write(
    made: Callable[[str], str], begin: str = BEGIN, end: str = END, page: Path = PAGE
) -> None:
    """Put tables between two marks of the page; `made` of what is there now."""
    head, _, rest = page.read_text("utf-8").partition(begin)
    shown, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"error: {page} has no marks for the tables\n  {begin} ... {end}")
    page.write_text(f"{head}{begin}\n\n{made(shown)}\n\n{end}{tail}", "utf-8")
