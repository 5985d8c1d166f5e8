"""A sweep for people and scripts: the trade-off curve, the weights to take, what to type next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from mergekit_cl.report.amounts import duration, number, size
from mergekit_cl.report.bars import bar
from mergekit_cl.report.text import shown
from mergekit_cl.sweep.result import UNITS, Point, Sweep, to_json

if TYPE_CHECKING:
    from rich.table import Table

BAR = 14
LEAST_BAR = 3
NUMBER = 8


def sweep_document(command: str, sweep: Sweep, again: str) -> dict[str, Any]:
    """The JSON document of a sweep that wrote nothing; again: the merge it leads to."""
    return {
        "command": command,
        "state": "swept",
        "sweep": to_json(sweep),
        "next": again,
        "notes": [*sweep.plan_notes, *sweep.notes],
        "seconds": round(sweep.seconds, 3),
        "bytes": sweep.nbytes,
    }


def print_sweep(sweep: Sweep, stream: TextIO, *, again: str | None) -> None:
    """Print it; again: the command line that merges with the weights found, if it is not done yet.

    stream: stdout where the sweep is the result, stderr where a merge follows.
    """
    from rich.console import Console

    # A pipe or a file has no width: nothing is cut there.
    width = None if stream.isatty() else 10_000
    console = Console(file=stream, highlight=False, soft_wrap=True, width=width)

    def say(line: str) -> None:
        console.print(shown(line), markup=False)

    # What a merge that follows says itself is not said twice.
    for note in [*(sweep.plan_notes if again is not None else ()), *sweep.notes]:
        say(f"note: {note}")
    console.print(_table(sweep, console.width))
    say(f"in {UNITS[sweep.measure]}; what rounding to the output's dtype adds is not in it")
    worst = max(range(len(sweep.parents)), key=lambda k: sweep.best.losses[k])
    what = "all weights" if sweep.exact else "these"
    say(
        f"best of {what}: {weights_words(sweep.best.weights)}, "
        f"worst for {sweep.parents[worst]}: {number(sweep.best.losses[worst])}"
    )
    if again is not None:
        say(f"next: {again}")


def cost(sweep: Sweep) -> str:
    """Time and speed of the pass."""
    rate = sweep.nbytes / sweep.seconds if sweep.seconds else 0.0
    return f"{duration(sweep.seconds)}, {size(rate)}/s"


def weights_words(weights: Sequence[float]) -> str:
    """Weights as `--weights` takes them."""
    return ",".join(f"{weight:g}" for weight in weights)


def _table(sweep: Sweep, width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = _rows(sweep)
    parents = len(sweep.parents)
    taken = max(len(weights_words(row.weights)) for row in rows) + len("  best")
    room = (width - taken) // parents - NUMBER - 4
    long = max(LEAST_BAR, min(BAR, room))
    largest = max((loss for point in rows for loss in point.losses), default=0.0)
    table = Table(
        title="predicted loss by weights",
        box=None,
        pad_edge=False,
        title_justify="left",
        title_style="bold",
    )
    table.add_column("weights", no_wrap=True)
    for name in sweep.parents:
        safe = shown(name)
        limit = NUMBER + max(room - long, 0)
        cut = safe if len(safe) <= limit else f"…{safe[len(safe) - limit + 1 :]}"
        table.add_column(Text(cut), justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    table.add_column("")
    for point in rows:
        cells = []
        for loss in point.losses:
            share = loss / largest if largest else 0.0
            cells += [number(loss), bar(share, long)]
        is_best = point.weights == sweep.best.weights
        table.add_row(
            weights_words(point.weights),
            *cells,
            "best" if is_best else "",
            style="bold" if is_best else None,
        )
    return table


def _rows(sweep: Sweep) -> list[Point]:
    """The points, with the best one among them: of two models in its place, else at the end."""
    if any(point.weights == sweep.best.weights for point in sweep.points):
        return list(sweep.points)
    rows = [*sweep.points, sweep.best]
    return sorted(rows, key=lambda point: point.weights[1]) if len(sweep.parents) == 2 else rows


def print_sweep_plan(plan: dict[str, Any]) -> None:
    """The plan of `--dry-run`, on stdout."""
    told = plan["sweep"]
    sys.stdout.write(
        f"{plan['command']} sweep: {told['points']} points, reads {size(told['bytes_read'])}, "
        f"{told['workers']} workers with {size(told['buffer_bytes'])} of buffers\n"
    )
