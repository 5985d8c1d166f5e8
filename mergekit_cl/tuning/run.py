"""`clmerge train` step by step. Read it top to bottom."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.continual.average import WeightAverage
from mergekit_cl.continual.buffer import Buffer
from mergekit_cl.interrupts import deferred_interrupts
from mergekit_cl.launched import launched
from mergekit_cl.memory import peak_memory_bytes
from mergekit_cl.report.progress import Start, no_progress
from mergekit_cl.tuning.engine import Engine, engine
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.metrics import Log
from mergekit_cl.tuning.model import Tuned, build_tuned
from mergekit_cl.tuning.optimizer import make_optimizer
from mergekit_cl.tuning.publishing import publish
from mergekit_cl.tuning.reading import config_text
from mergekit_cl.tuning.resuming import check_same_config
from mergekit_cl.tuning.rundir import RunFolder, begin_run, check_free, end_run
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.session import Session, Tell
from mergekit_cl.tuning.state import load_state, pointer
from mergekit_cl.tuning.taskrows import Reader, TaskRows, read_tasks
from mergekit_cl.tuning.tasks import run_task


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    state: "finished" or "up to date". model: the checkpoint or adapter that was written. decision:
    of the gate, None without one. matrix: what tasks.json holds.
    """

    run: Path
    model: Path
    state: str
    decision: str | None
    matrix: dict[str, Any]
    seconds: float
    peak_memory: int | None


def train(
    config: Config,
    *,
    resume: Path | None = None,
    continue_from: Path | None = None,
    force: bool = False,
    progress: Start,
    tell: Tell,
) -> Outcome:
    """Learn the tasks of a config in their order and leave a run directory.

    resume: a run of the same config that was interrupted. continue_from: a finished run whose
    model, buffer and protection these tasks build on. force: begin anew in place of an older run.
    Raises what is wrong with config, files or rows before anything is trained.
    """
    folder = RunFolder(Path(resume or config.output))
    if launched().rank:
        progress, tell = no_progress, _silent
    with ExitStack() as stack:
        if resume is None:
            check_free(folder, force=force)
        else:
            check_same_config(folder, config)
            if (done := finished(folder)) is not None:
                return done
        checkpoint = stack.enter_context(open_checkpoint(config.model))
        tuned = build_tuned(config, checkpoint)
        reader = _reader(config, tuned)
        tasks = read_tasks(config, reader, held_out=())
        among = stack.enter_context(engine(config.optimizer.precision, [], str(folder.root)))
        caught = stack.enter_context(deferred_interrupts())
        among.prepare(tuned.module)
        live = _begin(config, tuned, tasks)
        with _place(folder, config, among, resume=resume is not None, force=force):
            leads = among.leads
            session = Session(
                config=config,
                engine=among,
                checkpoint=checkpoint,
                folder=folder,
                reader=reader,
                tasks=tasks,
                suites={task.name: task.judged for task in tasks if task.judged is not None},
                log=Log(folder.metrics if leads else None),
                times=Log(folder.times if leads else None),
                progress=progress,
                tell=tell,
                caught=caught,
            )
            return _run(session, live)


def _run(session: Session, live: Live) -> Outcome:
    lines = load_state(session.folder.state, live) if pointer(session.folder.state) else 0
    session.log.cut(lines)
    try:
        while live.position.task < len(session.tasks):
            run_task(session, live)
        target = publish(session, live)
    finally:
        session.log.close()
        session.times.close()
    seconds = round(time.perf_counter() - session.began, 3)
    outcome = Outcome(
        run=session.folder.root,
        model=target,
        state="finished",
        decision=None,
        matrix={},
        seconds=seconds,
        peak_memory=peak_memory_bytes(),
    )
    if session.engine.leads:
        end_run(session.folder, _record(outcome))
    return outcome


def finished(folder: RunFolder) -> Outcome | None:
    """What became of a run that is finished already."""
    record = folder.read_record()
    if record is None or record["state"] != "finished":
        return None
    return Outcome(
        run=folder.root,
        model=folder.root / record["model"],
        state="up to date",
        decision=record["decision"],
        matrix=record["matrix"],
        seconds=record["seconds"],
        peak_memory=record["peak_memory_bytes"],
    )


def _record(outcome: Outcome) -> dict[str, Any]:
    """The outcome as run.json keeps it."""
    return {
        "state": outcome.state,
        "model": outcome.model.name,
        "decision": outcome.decision,
        "matrix": outcome.matrix,
        "seconds": outcome.seconds,
        "peak_memory_bytes": outcome.peak_memory,
    }


def _begin(config: Config, tuned: Tuned, tasks: tuple[TaskRows, ...]) -> Live:
    """What changes, as it is before the first step."""
    live = Live(tuned, make_optimizer(config.optimizer, tuned.trained()))
    if config.ema is not None:
        settings = config.ema
        live.average = WeightAverage(
            tuned,
            half_life=settings.half_life,
            unit=settings.unit,
            warmup=settings.warmup,
        )
    if config.replay is not None:
        held_out = {row for task in tasks for row in task.validation}
        live.buffer = Buffer(config.replay.rows, config.seed, config.replay.policy, held_out)
    return live


def _reader(config: Config, tuned: Tuned) -> Reader:
    batch = config.batch
    return Reader(
        tuned.tokenizer, tuned.built.kind, tuned.config, batch.max_length, batch.completion_only
    )


@contextmanager
def _place(
    folder: RunFolder, config: Config, among: Engine, *, resume: bool, force: bool
) -> Iterator[None]:
    """Within, the run's folder is there and no other run is in it."""
    held = None
    if among.leads:
        held = folder.lock() if resume else begin_run(folder, config_text(config), force=force)
    among.wait()
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _silent(text: str) -> None:
    """Only the process that leads speaks."""
