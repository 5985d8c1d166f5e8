"""What was forgotten, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mergekit_cl.report.amounts import number
from mergekit_cl.report.text import shown

SCORES = ("loss", "accuracy")
UNITS = {"loss": "nats per token", "accuracy": "of accuracy"}


def sentences(matrices: Mapping[str, Any]) -> Iterator[str]:
    """A sentence per task that was learned before the last, of the loss or else the accuracy.

    matrices: tasks.json, {score: TaskMatrix.to_json() or null}. A change counts where its interval
    lies on one side of 0; without an interval it is told as it is.
    """
    for score in reversed(SCORES):
        if matrix := matrices.get(score):
            for task, lost in zip(matrix["tasks"], matrix["forgetting_of"], strict=False):
                yield _sentence(task, lost, UNITS[score])
            return


def _sentence(task: str, lost: Mapping[str, Any], unit: str) -> str:
    value, lower, upper = lost["value"], lost["lower"], lost["upper"]
    name = shown(task, 40)
    if lower is None:
        return f"{name}: {number(value)} {unit} lost since its best, from a single row"
    span = f"[{number(lower)}, {number(upper)}]"
    if lower > 0:
        return f"{name} was partly forgotten: {number(value)} {unit} lost since its best {span}"
    if upper < 0:
        span = f"[{number(-upper)}, {number(-lower)}]"
        return f"{name} gained {number(-value)} {unit} from what came after it {span}"
    return f"{name}: no clear change since its best: {number(value)} {unit} lost {span}"
