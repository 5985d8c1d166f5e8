"""What `clmerge diff` and `clmerge check` found, for a terminal, a pager or a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mergekit_cl.comparing.report import Overlap, Report
from mergekit_cl.divergence.summary import worst
from mergekit_cl.divergence.verdict import TensorMetrics, reason
from mergekit_cl.report.amounts import duration, number, size
from mergekit_cl.report.bars import bar
from mergekit_cl.report.text import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mergekit_cl.comparing.measured import Measured, MeasuredModel
    from mergekit_cl.training.loss import Mean

BAR = 8
NAMES_LISTED = 5
COLUMNS = ("rel_l2", "predicted_kl", "survival", "rounding_error")
"""What fits beside a name within 80 columns."""
ROUNDING_WORTH_A_WORD = 0.9
LEAST_NAME = 16
UNWIELDY = 1e5


def print_comparison(report: Report, *, top: int, verdict: bool) -> None:
    """Print it on stdout: worst first, `top` layers and tensors; verdict: with what it comes to."""
    from rich.console import Console

    # A pipe or a file has no width: nothing is cut there.
    console = Console(highlight=False, soft_wrap=True, width=None if _is_terminal() else 10_000)
    for overlap in report.overlaps:
        _say(console, f"{report.merged} against {overlap.parent}: {_met(overlap)}")
        for line in _unmatched(report.merged, overlap):
            _say(console, f"  {line}")
    for note in report.notes:
        _say(console, f"note: {note}")
    console.print(_model_table(report))
    metric = order(report)
    for title, rows in (
        ("layers", report.divergence.layers),
        ("tensors", report.divergence.tensors),
    ):
        those = worst(rows, metric, top)
        if those:
            console.print(_rows_table(f"{title}, worst {metric} first", those, metric, report))
            names = len({row.name for row in rows})
            if names > len(those):
                _say(console, f"and {names - len(those)} more {title} (--top {names} shows all)")
    if report.measured is not None:
        console.print(_measured_table(report, report.measured))
    for line in rounding_words(report):
        _say(console, line)
    if verdict:
        _print_verdict(console, report)


def cost(report: Report) -> str:
    """Time and speed of the comparison; of one that ran models too, the time alone."""
    if report.measured is not None:
        return duration(report.seconds)
    return f"{duration(report.seconds)}, {size(report.nbytes / report.seconds)}/s"


def order(report: Report) -> str:
    """The metric that says what is worst: predicted_kl where every tensor has one, else rel_l2."""
    tensors = report.divergence.tensors
    known = all(row.metrics["predicted_kl"] is not None for row in tensors)
    return "predicted_kl" if tensors and known else "rel_l2"


def rounding_words(report: Report) -> list[str]:
    """How much of the updates rounding left, and what would keep more, in words."""
    lines = []
    layers = worst(report.divergence.layers, "survival", 1)
    for one in report.divergence.model:
        if (kept := one.metrics["survival"]) is not None:
            lines.append(f"rounding kept {kept:.0%} of the update from {one.parent}")
    if layers and (least := layers[0].metrics["survival"]) is not None:
        lines.append(f"least of it in {layers[0].name}: {least:.0%}")
        if least < ROUNDING_WORTH_A_WORD:
            lines.append(
                "to keep more: write float32 (--dtype float32), or keep what rounding takes for "
                "the next merge (--carry)"
            )
    return lines


def verdict_words(report: Report) -> list[str]:
    """The reasons of the verdict; those that the baseline had too are told apart."""
    verdict = report.divergence.verdict
    known = [f"no worse than in {report.baseline}: {reason(one)}" for one in report.known]
    shown_known = known[:NAMES_LISTED]
    if len(known) > len(shown_known):
        shown_known.append(f"and {len(known) - len(shown_known)} more no worse than there")
    return [*verdict.reasons, *shown_known]


def _print_verdict(console: Console, report: Report) -> None:
    verdict = report.divergence.verdict
    style = "bold red" if verdict.lossy else "bold green"
    _say(console, f"verdict: {'lossy' if verdict.lossy else 'ok'}", style=style)
    for line in verdict_words(report):
        _say(console, f"  - {line}")
    for advice in verdict.advice:
        _say(console, f"  try: {advice}")


def _met(overlap: Overlap) -> str:
    pairing = overlap.pairing
    said = [f"{len(pairing.names)} tensors compared"]
    if equal := len(pairing.others) - len(overlap.differing):
        said.append(f"{equal} that are no floats are equal")
    return ", ".join(said)


def _unmatched(merged: str, overlap: Overlap) -> Iterable[str]:
    pairing = overlap.pairing
    shapes = [f"{one.name} {list(one.merged)} against {list(one.parent)}" for one in pairing.shapes]
    for what, names in (
        (f"only in {merged}", pairing.only_merged),
        (f"only in {overlap.parent}", pairing.only_parent),
        ("of another shape", shapes),
        ("no floats, and different", overlap.differing),
    ):
        if names:
            more = f", and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
            yield f"{len(names)} {what}: {', '.join(names[:NAMES_LISTED])}{more}"


def _model_table(report: Report) -> Table:
    table = _table("")
    table.add_column("model")
    model = report.divergence.model
    for one in model:
        table.add_column(_text(one.parent, 24), justify="right")
    for metric in model[0].values:
        cells = [one.values[metric] for one in model]
        if any(cell is not None for cell in cells):
            table.add_row(metric, *map(number, cells))
    shares = [covered.share for covered in report.divergence.covered]
    if any(share is not None and share < 1 for share in shares):
        table.add_row("fisher_share", *map(number, shares))
    return table


def _rows_table(title: str, rows: Sequence[TensorMetrics], metric: str, report: Report) -> Table:
    table = _table(title)
    columns = [c for c in COLUMNS if any(row.metrics[c] is not None for row in rows)]
    columns.sort(key=lambda column: column != metric)
    several = len(report.divergence.parents) > 1
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("name, worst parent" if several else "name")
    longest = max(row.metrics[metric] or 0.0 for row in rows)
    taken = BAR + sum(max(len(column), 8) + 2 for column in columns) + 2
    room = max(LEAST_NAME, _width() - taken) if _is_terminal() else None
    for row in rows:
        share = (row.metrics[metric] or 0.0) / longest if longest else 0.0
        name = f"{row.name} ({row.parent})" if several else row.name
        cells = [number(row.metrics[column]) for column in columns]
        table.add_row(bar(share, BAR), *cells, _text(name, room))
    return table


def _measured_table(report: Report, measured: Measured) -> Table:
    title = f"measured on {measured.rows} rows, {measured.tokens} tokens"
    table = _table(title)
    table.add_column("")
    for heading in ("nats per token", "merged less this", "predicted"):
        table.add_column(heading, justify="right")
    if measured.merged.accuracy is not None:
        table.add_column("accuracy", justify="right")
    table.add_column("model")
    predicted = [one.predicted_loss for one in report.divergence.model]
    for role, one, loss in (
        ("merged", measured.merged, None),
        *(("parent", one, p) for one, p in zip(measured.parents, predicted, strict=True)),
    ):
        table.add_row(role, *_measured_cells(one, loss), _text(one.path, None))
    return table


def _measured_cells(one: MeasuredModel, predicted: float | None) -> list[str]:
    cells = [mean_words(one.loss), mean_words(one.rise, signed=True), number(predicted)]
    return cells if one.accuracy is None else [*cells, mean_words(one.accuracy)]


def mean_words(mean: Mean | None, *, signed: bool = False) -> str:
    """'3.214 ± 0.012', a dash for what there is none of."""
    if mean is None:
        return "-"
    form = ".4f" if abs(mean.value) < UNWIELDY else ".3e"
    value = f"{mean.value:{'+' if signed else ''}{form}}"
    return value if mean.standard_error is None else f"{value} ± {mean.standard_error:{form}}"


def name_words(name: str) -> str:
    """A name from a file, harmless on a terminal and in the log of a GitHub workflow."""
    return shown(name).replace("##[", "\\x23#[")


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(
        title=title or None, box=None, pad_edge=False, title_justify="left", title_style="bold"
    )


def _text(name: str, limit: int | None) -> Text:
    """A name that rich takes for no markup; of a long one the end, which tells more."""
    from rich.text import Text

    safe = name_words(name)
    if limit is not None and len(safe) > limit:
        safe = f"…{safe[len(safe) - limit + 1 :]}"
    return Text(safe, no_wrap=True)


def _say(console: Console, line: str, *, style: str | None = None) -> None:
    console.print(name_words(line), style=style, markup=False)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _width() -> int:
    from rich.console import Console

    return Console().width
