"""How long each task is, as far as that can be told before the run fills its buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit_cl.continual.buffertext import ROWS
from mergekit_cl.continual.mixing import fresh_rows
from mergekit_cl.training.bufferfile import load_buffer
from mergekit_cl.tuning.rundir import RunFolder
from mergekit_cl.tuning.schedule import steps_of
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.state import pointer
from mergekit_cl.tuning.taskrows import TaskRows


@dataclass(frozen=True)
class Length:
    """steps: of the optimizer. epochs: passes over the task's own rows that these are."""

    steps: int
    epochs: float


def lengths_of(
    config: Config, tasks: Sequence[TaskRows], earlier: RunFolder | None = None
) -> tuple[Length, ...]:
    """The length of each task, if all earlier ones are kept rows of.

    earlier: the run whose tasks these come after. Raises what `load_buffer` raises for a buffer
    that cannot be read.
    """
    ratio = 0.0 if config.replay is None else config.replay.ratio
    kept, done, found = rows_to_begin_with(config, earlier), 0, []
    for settings, task in zip(config.task, tasks, strict=True):
        rows, batch = len(task.encoded), config.batch.rows
        steps = steps_of(settings, rows, batch, ratio=ratio, kept=kept, first=done)
        fresh = fresh_rows(batch, ratio, kept, steps, first=done)
        found.append(Length(steps, fresh / rows))
        if config.replay is not None:
            kept, done = min(config.replay.rows, kept + len(task.train)), done + steps
    return tuple(found)


def rows_to_begin_with(config: Config, earlier: RunFolder | None) -> int:
    """How many rows of earlier tasks the replay buffer holds before the first step."""
    if config.replay is None:
        return 0
    places = [Path(config.replay.buffer)] if config.replay.buffer is not None else []
    if earlier is not None and (now := pointer(earlier.state)):
        state = earlier.state / now["current"]
        places += [state] if (state / ROWS).is_file() else []
    return min(config.replay.rows, sum(len(load_buffer(place)) for place in places))
