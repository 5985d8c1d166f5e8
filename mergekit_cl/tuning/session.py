"""What a run has at hand: everything that stays the same while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import Interrupted
from mergekit_cl.report.progress import Advance, Start
from mergekit_cl.training.encode import Encoded
from mergekit_cl.training.rows import Row
from mergekit_cl.tuning.engine import Engine
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.metrics import Log
from mergekit_cl.tuning.rundir import RunFolder
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.snapshots import drop_later, write_snapshot
from mergekit_cl.tuning.state import save_state
from mergekit_cl.tuning.taskrows import Reader, TaskRows
from mergekit_cl.tuning.tracking import numbers_of

Tell = Callable[[str], None]


@dataclass
class Session:
    """One process's part of a run.

    suites: rows that models are judged by, {task: rows}, of this run and of those before it; extra:
    the gate's own. judged: all of them as they were read. inputs: digests of all it begins with.
    strength: lambda, as a number. caught: the signal that arrived, or None. taken: steps of this
    run so far, those too that a rejection or a resumption took back.
    """

    config: Config
    engine: Engine
    checkpoint: Checkpoint
    folder: RunFolder
    reader: Reader
    tasks: tuple[TaskRows, ...]
    suites: Mapping[str, Encoded]
    extra: Mapping[str, Encoded]
    judged: Mapping[str, Sequence[Row]]
    inputs: Mapping[str, Any]
    strength: float
    log: Log
    times: Log
    progress: Start
    tell: Tell
    caught: Callable[[], int | None]
    taken: int = 0
    began: float = field(default_factory=time.perf_counter)

    @property
    def held_out(self) -> set[str]:
        """Ids of rows that are judged by, and so never replayed."""
        return {row.id for rows in self.judged.values() for row in rows}

    def write(self, live: Live, kind: str, **values: object) -> None:
        """One line of metrics.jsonl, whose numbers go to trackers too."""
        where = {"kind": kind, "task": self.tasks[live.position.task].name}
        self.log.write({**where, "step": live.position.steps, **values})
        self.engine.track(numbers_of(kind, values), self.taken)

    def count_step(self, live: Live, seconds: float) -> None:
        """One more step was taken; its time goes to times.jsonl, which is never cut."""
        self.times.write({"step": live.position.steps, "seconds": round(seconds, 6)})
        self.times.flush()
        self.taken += 1

    def rows(self, title: str, suites: Mapping[str, Encoded]) -> Advance:
        """Progress over all rows of some suites."""
        return self.progress(title, sum(len(one.rows) for one in suites.values()), "rows")

    def save(self, live: Live, *, accepted: bool) -> None:
        """Write a state, together with the lines of the log up to here."""
        self.log.sync()
        save_state(
            self.folder.state,
            live,
            lines=self.log.length,
            accepted=accepted,
            leads=self.engine.leads,
        )
        if live.tracks and self.engine.leads:
            # Not before: until then, what goes on is the state that these belong to.
            drop_later(self.folder.snapshots, live.tracks[0].step)
        self.engine.wait()

    def keep_snapshot(self, live: Live, *, last: bool = False) -> None:
        """Write the averages that others are made of, where it is their step.

        last: at the end of the run, if the last step was not one. A collective.
        """
        ema = self.config.ema
        step = live.tracks[0].step if live.tracks else 0
        if ema is not None and step and last == bool(step % ema.snapshot_every):
            write_snapshot(self.folder.snapshots, live.tracks, leads=self.engine.leads)

    def stop_if_asked(self, live: Live) -> None:
        """Save and raise Interrupted, in all processes, where one of them got a signal."""
        signals = self.engine.total([float(self.caught() or 0)])
        if signals[0]:
            self.save(live, accepted=False)
            number = self.caught() or max(map(int, self.engine.exchange(self.caught() or 0)))
            raise Interrupted(number, hint=f"the same command with --resume {self.folder.root}")
