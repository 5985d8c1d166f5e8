"""`tasks.json`: the task matrix of a run, with intervals and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mergekit_cl.decide.task_matrix import Better, Scores, TaskMatrix, task_matrix
from mergekit_cl.training.loss import RowLosses
from mergekit_cl.tuning.live import Record

FORMAT = "clmerge.tasks/1"


def describe_matrix(record: Record) -> dict[str, Any]:
    """The content of tasks.json: `loss` in nats per token, `accuracy` of classifiers or null."""
    right = all(
        losses.correct is not None for one in record.measured for losses in one.losses.values()
    )
    loss, accuracy = _matrix(record, _nats, "lower"), None
    if right:
        accuracy = _matrix(record, _correct, "higher")
    return {
        "format": FORMAT,
        "loss": None if loss is None else loss.to_json(),
        "accuracy": None if accuracy is None else accuracy.to_json(),
    }


def _matrix(
    record: Record, scores: Callable[[RowLosses], Scores], better: Better
) -> TaskMatrix | None:
    """None where no task that was learned has rows to be judged by."""
    judged = {name for one in record.measured for name in one.losses}
    learned = [one for one in record.measured if one.after in judged]
    if not learned:
        return None
    done = [str(one.after) for one in learned]
    tasks = [*done, *(name for name in record.measured[-1].losses if name not in done)]

    def row(losses: dict[str, RowLosses]) -> list[Scores | None]:
        return [scores(losses[name]) if name in losses else None for name in tasks]

    before = next((one for one in record.measured if one.after is None), None)
    return task_matrix(
        tasks,
        [row(one.losses) for one in learned],
        better=better,
        before=None if before is None else row(before.losses),
    )


def _nats(losses: RowLosses) -> Scores:
    return Scores(np.asarray(losses.nats), np.asarray(losses.tokens, dtype=np.float64))


def _correct(losses: RowLosses) -> Scores:
    right = np.asarray(losses.correct, dtype=np.float64)
    return Scores(right, np.ones_like(right))
