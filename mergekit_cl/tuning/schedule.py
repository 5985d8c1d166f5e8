"""How long a task is and how fast it learns: functions of the step, so there is no scheduler."""

from __future__ import annotations

import math

from mergekit_cl.continual.mixing import fresh_rows
from mergekit_cl.tuning.schema import Optimizer, Task


def steps_of(
    task: Task, rows: int, batch: int, *, ratio: float = 0.0, kept: int = 0, first: int = 0
) -> int:
    """Optimizer steps of a task: as many as asked for, or what its epochs take.

    rows: to learn. batch: rows per step, of which `ratio` are replayed, as far as the buffer has
    `kept` ones. first: steps that the run has taken before.
    """
    if task.steps is not None:
        return task.steps
    wanted = math.ceil((task.epochs or 1.0) * rows)

    def short(steps: int) -> bool:
        return fresh_rows(batch, ratio, kept, steps, first=first) < wanted

    # By the ratio alone it may be off: that is met over all steps of a run, not in every task.
    steps = max(1, math.ceil(wanted / (batch - min(batch * ratio, kept))))
    while short(steps):
        steps += 1
    while steps > 1 and not short(steps - 1):
        steps -= 1
    return steps


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of a task: up over `warmup` steps, then by the schedule.

    linear: down to 0 after the last step. cosine: half a wave, down to 0.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - done)
    if settings.schedule == "cosine":
        return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate
