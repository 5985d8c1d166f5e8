"""What a training run left: as a document, and for people."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_cl.report.amounts import duration, number, size
from mergekit_cl.report.forgetting import SCORES, sentences
from mergekit_cl.report.html.run_page import NAME as PAGE
from mergekit_cl.report.text import columns, log_line, shown

if TYPE_CHECKING:
    from mergekit_cl.tuning.run import Outcome


def run_document(outcome: Outcome) -> dict[str, Any]:
    """The JSON document of `clmerge train`."""
    return {
        "command": "train",
        "state": outcome.state,
        "run": str(outcome.run),
        "model": str(outcome.model),
        "decision": outcome.decision,
        "alarms": outcome.alarms,
        "matrix": outcome.matrix,
        "seconds": outcome.seconds,
        "peak_memory_bytes": outcome.peak_memory,
    }


def print_run(outcome: Outcome) -> None:
    """Print the end of a run on stderr."""
    print("\n".join(log_line(line) for line in run_lines(outcome)), file=sys.stderr)  # noqa: T201


def run_lines(outcome: Outcome) -> Iterator[str]:
    """The task matrix, the gate, what was forgotten, where the model is, what to type next."""
    if outcome.state == "up to date":
        yield f"up to date: {shown(outcome.run)} is finished; --continue adds tasks to it"
    for score in SCORES:
        if matrix := outcome.matrix.get(score):
            yield f"{score} of each task's held-out rows, {_UNITS[score]}"
            yield from matrix_lines(matrix)
    yield from sentences(outcome.matrix)
    if outcome.decision is not None:
        yield f"gate: {_DECISIONS[outcome.decision]}; {shown(outcome.run / 'verdicts')} has why"
    if outcome.alarms:
        yield f"drift: {outcome.alarms} alarm{'s' if outcome.alarms > 1 else ''} in the new rows"
    yield f"model: {shown(outcome.model)}"
    if (outcome.run / PAGE).is_file():
        yield f"report: {shown(outcome.run / PAGE)}"
    yield f"next: {next_command(outcome)}"
    peak = "" if outcome.peak_memory is None else f", peak memory {size(outcome.peak_memory)}"
    yield f"{duration(outcome.seconds)}{peak}"


def matrix_lines(matrix: Mapping[str, Any]) -> list[str]:
    """One line per task learned, one column per task; what was not learned yet is there too."""
    names = [shown(task, 20) for task in matrix["tasks"]]
    rows = [("before", matrix["before"]), *zip(names, matrix["entries"], strict=False)]
    lines = [(f"after {name}" if k else name, *_cells(row)) for k, (name, row) in enumerate(rows)]
    return columns([("", *names), *lines], right=frozenset(range(1, len(names) + 1)))


def next_command(outcome: Outcome) -> str:
    """What people mostly type after a run, ready to be copied."""
    model = shlex.quote(str(outcome.model))
    settings = outcome.model / "adapter_config.json"
    if settings.is_file():
        base = json.loads(settings.read_text()).get("base_model_name_or_path") or "BASE"
        return f"clmerge lora-merge {shlex.quote(base)} {model}"
    return f"clmerge fisher-merge {model} OTHER"


def _cells(row: Sequence[Mapping[str, Any] | None]) -> list[str]:
    return ["-" if one is None else number(one["value"]) for one in row]


_UNITS = {"loss": "nats per token", "accuracy": "share of rows"}
_DECISIONS = {
    "accept": "accepted",
    "reject": "an update was rejected and taken back",
    "inconclusive": "could not decide: more held-out rows would help",
}
