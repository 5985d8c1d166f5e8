"""One task from its first step to what is kept of it. Read it top to bottom."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

from mergekit_cl.continual.mixing import Realised
from mergekit_cl.decide.gate import Decision
from mergekit_cl.errors import DriftError
from mergekit_cl.manifest import write_json
from mergekit_cl.training.encode import EncodedRow
from mergekit_cl.training.loss import accuracy, mean_loss
from mergekit_cl.tuning.evaluating import as_published, evaluate
from mergekit_cl.tuning.gatekeeping import begin_gate, look
from mergekit_cl.tuning.keeping import keep_task
from mergekit_cl.tuning.live import Live, Measured
from mergekit_cl.tuning.loop import Stepped, take_step
from mergekit_cl.tuning.matrix import describe_matrix
from mergekit_cl.tuning.mixture import mixture_of
from mergekit_cl.tuning.optimizer import make_optimizer
from mergekit_cl.tuning.penalty import penalty_of
from mergekit_cl.tuning.reach import describe_protection, protection_lines
from mergekit_cl.tuning.schedule import steps_of
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.session import Session
from mergekit_cl.tuning.taskrows import TaskRows
from mergekit_cl.tuning.watching import alarm_to_json


def run_task(session: Session, live: Live) -> None:
    """Learn the task at `live.position`, measure, keep what later tasks need, and move on."""
    config, task = session.config, session.tasks[live.position.task]
    settings = config.task[live.position.task]
    if not live.position.begun:
        begin_gate(session, live)
        live.position = replace(live.position, begun=True)
        session.save(live, accepted=True)
    mixture = mixture_of(config, task.name, task.encoded, _replayed(session, live))
    steps = steps_of(
        settings,
        len(task.encoded),
        config.batch.rows,
        ratio=0.0 if config.replay is None else config.replay.ratio,
        kept=len(mixture.replayed),
        first=live.position.steps - live.position.step,
    )
    penalty = penalty_of(config.ewc, live, session.strength, session.engine.total_of_shards)
    if penalty.held is not None and live.position.step == 0:
        reached, kinds = penalty.held.coverage, live.fishers
        said = describe_protection(reached, session.strength, kinds)
        session.write(live, "protection", **said)
        for line in protection_lines(reached, session.strength, kinds):
            session.tell(line)
    advance = session.progress(f"train {task.name}", steps * config.batch.rows, "rows")
    advance(live.position.step * config.batch.rows)
    alarmed = back = False
    while live.position.step < steps and not back:
        began = time.perf_counter()
        decision: Decision | None = None
        stepped = take_step(config, session.engine, live, mixture, penalty, steps)
        session.keep_snapshot(live)
        alarmed = _log(session, live, stepped, time.perf_counter() - began)
        advance(config.batch.rows)
        if config.gate is not None and _is_look(live.position.step, config.gate.every, steps):
            decision, back = look(session, live, last=live.position.step == steps)
        if back:  # nothing is saved before the task is over: a run resumed here would try it again
            continue
        if decision == "accept" and live.position.step < steps:
            session.save(live, accepted=True)
        elif live.position.step % config.save_every == 0:
            session.save(live, accepted=False)
        session.stop_if_asked(live)
        if alarmed and _stops(config):
            session.save(live, accepted=False)
            raise _drifted(session, live)
    if live.position.step:
        keep_task(session, live)
    measure(session, live, after=task.name)
    live.history.tasks.append(
        {"task": task.name, "steps": live.position.step, "decision": _last_decision(live, task)}
    )
    move_on(session, live)
    if back and alarmed and _stops(config):  # the rejected steps are over, the alarm is not
        raise _drifted(session, live)


def move_on(session: Session, live: Live) -> None:
    """To the next task, with a fresh optimizer."""
    now = live.position
    live.position = replace(now, task=now.task + 1, step=0, consumed=0, begun=False)
    live.realised = Realised()
    live.optimizer = make_optimizer(session.config.optimizer, live.tuned.trained())
    session.save(live, accepted=True)
    if session.engine.leads:
        write_json(session.folder.matrix, describe_matrix(live.record))
    session.stop_if_asked(live)


def measure(session: Session, live: Live, *, after: str | None) -> None:
    """One row of the task matrix: all tasks' held-out rows with the model as it would be written.

    Tasks still ahead are measured too: what earlier ones did for them is forward transfer.
    """
    with as_published(session.config, live):
        found = evaluate(
            session.engine, live, session.suites, session.rows("evaluate", session.suites)
        )
    if after is None and live.record.measured:
        # A run that builds on another: what its last model knows of the new tasks was missing.
        last = live.record.measured.pop()
        found, after = {**found, **last.losses}, last.after
    live.record.measured.append(Measured(after, found))
    live.record.revision += 1
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
    buffer = None
    if live.buffer is not None:
        buffer = asdict(live.buffer.describe(live.position.steps))
    session.write(live, "evaluation", after=after, tasks=row, buffer=buffer)


def _last_decision(live: Live, task: TaskRows) -> Decision | None:
    """What the gate decided last on a task; None without a gate.

    From the history: a run that is resumed behind its last step takes no look any more.
    """
    decided = [one["decision"] for one in live.history.verdicts if one["task"] == task.name]
    return decided[-1] if decided else None


def _stops(config: Config) -> bool:
    return config.drift is not None and config.drift.stop


def _drifted(session: Session, live: Live) -> DriftError:
    """What ends the run at an alarm; its state is saved."""
    alarm = live.history.alarms[-1]
    return DriftError(
        "the loss of new rows has drifted, and drift.stop ends the run then",
        detail=f"{session.folder.root}: step {alarm['run_step']}, loss {alarm['value']:.4g} went "
        f"{alarm['direction']} from about step {alarm['onset']} of those watched",
        hint=f"look at the rows; --resume {session.folder.root} goes on all the same",
    )


def _log(session: Session, live: Live, stepped: Stepped, seconds: float) -> bool:
    """The step's line, and what the drift detector makes of its new rows: whether it alarms."""
    alarm = None
    said = stepped.to_json()
    if live.stream is not None:
        if said["loss"] is not None:  # a batch may be replayed as a whole: .25 of 1 row, by turns
            alarm = live.stream.see(said["loss"])
        said |= live.stream.statistic
    if live.buffer is not None:
        share = live.realised.tokens_share
        if session.config.replay is None or session.config.replay.unit == "rows":
            share = live.realised.rows_share
        said["replay_share"] = share
    session.count_step(live, seconds)
    session.write(live, "step", **said)
    if alarm is not None:
        found = {"run_step": live.position.steps, **alarm_to_json(alarm)}
        live.history.alarms.append(found)
        session.write(live, "drift", **alarm_to_json(alarm))
        session.tell(
            f"drift: the loss of new rows went {alarm.direction} at step {live.position.steps}"
        )
    return alarm is not None


def _is_look(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def _replayed(session: Session, live: Live) -> dict[str, EncodedRow]:
    """The buffer's rows as tokens."""
    rows = () if live.buffer is None else tuple(kept.row for kept in live.buffer.rows())
    if not rows:
        return {}
    encoded = session.reader.encode(rows, "the replay buffer")
    return {row.id: row for row in encoded.rows}
