"""One task from its first step to what is kept of it. Read it top to bottom."""

from __future__ import annotations

import time
from dataclasses import replace

from mergekit_cl.training.encode import EncodedRow
from mergekit_cl.training.loss import accuracy, mean_loss
from mergekit_cl.tuning.evaluating import as_published, evaluate
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.loop import take_step
from mergekit_cl.tuning.mixture import mixture_of
from mergekit_cl.tuning.optimizer import make_optimizer
from mergekit_cl.tuning.penalty import Penalty
from mergekit_cl.tuning.schedule import steps_of
from mergekit_cl.tuning.session import Session


def run_task(session: Session, live: Live) -> None:
    """Learn the task at `live.position`, measure, keep what later tasks need, and move on."""
    config, task = session.config, session.tasks[live.position.task]
    settings = config.task[live.position.task]
    steps = steps_of(settings, len(task.encoded), config.batch.rows)
    if not live.position.begun:
        if not live.history.measured:
            measure(session, live, before=True)
        live.position = replace(live.position, begun=True)
        session.save(live, accepted=True)
    mixture = mixture_of(config, task.name, task.encoded, _replayed(session, live))
    advance = session.progress(f"train {task.name}", steps * config.batch.rows, "rows")
    advance(live.position.step * config.batch.rows)
    while live.position.step < steps:
        began = time.perf_counter()
        stepped = take_step(config, session.engine, live, mixture, Penalty(), steps)
        session.write(live, "step", **stepped.to_json())
        seconds = time.perf_counter() - began
        session.times.write({"step": live.position.steps, "seconds": round(seconds, 6)})
        advance(config.batch.rows)
        if live.position.step % config.save_every == 0:
            session.save(live, accepted=False)
        session.stop_if_asked(live)
    _keep(session, live)
    measure(session, live, before=False)
    live.history.tasks.append({"task": task.name, "steps": live.position.step})
    move_on(session, live)


def move_on(session: Session, live: Live) -> None:
    """To the next task, with a fresh optimizer."""
    live.position = replace(
        live.position, task=live.position.task + 1, step=0, consumed=0, begun=False
    )
    live.optimizer = make_optimizer(session.config.optimizer, live.tuned.trained())
    session.save(live, accepted=True)
    session.stop_if_asked(live)


def measure(session: Session, live: Live, *, before: bool) -> None:
    """One row of the task matrix: all tasks' held-out rows with the model as it would be written.

    Tasks still ahead are measured too: what earlier ones did for them is forward transfer.
    """
    total = sum(len(rows.rows) for rows in session.suites.values())
    advance = session.progress("evaluate", total, "rows")
    with as_published(session.config, live):
        found = evaluate(session.engine, live, session.suites, advance)
    row = {}
    for name, losses in found.items():
        loss, right = mean_loss(losses), accuracy(losses)
        row[name] = {
            "rows": len(losses.ids),
            "loss": loss.value,
            "standard_error": loss.standard_error,
            "accuracy": None if right is None else right.value,
            "accuracy_error": None if right is None else right.standard_error,
        }
    after = None if before else session.tasks[live.position.task].name
    live.history.measured.append({"after": after, "tasks": row})
    session.write(live, "evaluation", after=after, tasks=row)


def _keep(session: Session, live: Live) -> None:
    """Offer the task's rows to the buffer."""
    if live.buffer is None:
        return
    task = session.tasks[live.position.task]
    for row in task.train.values():
        live.buffer.add(row, row.content.get("label"), task.name, live.position.steps)


def _replayed(session: Session, live: Live) -> dict[str, EncodedRow]:
    """The buffer's rows as tokens."""
    rows = () if live.buffer is None else tuple(kept.row for kept in live.buffer.rows())
    if not rows:
        return {}
    encoded = session.reader.encode(rows, "the replay buffer")
    return {row.id: row for row in encoded.rows}
