"""`clmerge train` step by step. Read it top to bottom."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.interrupts import deferred_interrupts
from mergekit_cl.launched import launched
from mergekit_cl.memory import peak_memory_bytes
from mergekit_cl.report.html.run_page import write_run_page
from mergekit_cl.report.progress import Start, no_progress
from mergekit_cl.tuning.advice import advice, notes
from mergekit_cl.tuning.beginning import begin, go_on
from mergekit_cl.tuning.continuing import (
    Earlier,
    check_continued,
    check_same_base,
    check_unchanged,
    continued_by,
    earlier_run,
    is_continued,
)
from mergekit_cl.tuning.earlier import (
    Judged,
    check_inputs,
    has_inputs,
    judged_before,
    write_inputs,
)
from mergekit_cl.tuning.engine import Engine, check_trackers, engine, together
from mergekit_cl.tuning.gatekeeping import measure_anchor
from mergekit_cl.tuning.importance import check_estimator
from mergekit_cl.tuning.lengths import lengths_of
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.matrix import describe_matrix
from mergekit_cl.tuning.metrics import Log
from mergekit_cl.tuning.plan import facts_of
from mergekit_cl.tuning.preparing import Prepared, check_disk, prepare
from mergekit_cl.tuning.probing import has_unused
from mergekit_cl.tuning.publishing import publish
from mergekit_cl.tuning.reading import config_text
from mergekit_cl.tuning.resuming import check_same_config, is_same_config
from mergekit_cl.tuning.rundir import RunFolder, begin_run, check_free, end_run
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.session import Session, Tell
from mergekit_cl.tuning.state import load_state, pointer, protected_tasks
from mergekit_cl.tuning.strength import Learned, keep_strength, strength_of, values_to_try
from mergekit_cl.tuning.tasks import measure, run_task


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    state: "finished" or "up to date". model: the checkpoint or adapter that was written. decision:
    the gravest of the gate's, None without one. alarms: of the drift detector. matrix: {"loss" and
    for classifiers "accuracy": a TaskMatrix as values}.
    """

    run: Path
    model: Path
    state: str
    decision: str | None
    alarms: int
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
    model, buffer and protection these tasks build on, in a folder of their own. force: begin anew
    in place of an older run; without it a finished run of the same config, model and rows is up to
    date. Raises what is wrong with config, files or rows before anything is
    trained, and Interrupted where a signal came; the same with `resume` then goes on.
    """
    folder = RunFolder(Path(resume or config.output))
    if launched().rank:
        progress, tell = no_progress, _silent
    check_trackers(config.trackers)
    with ExitStack() as stack:
        if resume is None:
            if not force and (done := _repeated(folder, config, continue_from)) is not None:
                return done
            check_free(folder, force=force)
            earlier = before = _to_build_on(folder, config, continue_from)
            judged = {} if before is None else judged_before(before.folder)
        else:
            check_same_config(folder, config)
            if (done := finished(folder)) is not None:
                return done
            earlier, judged = continued_by(folder), judged_before(folder, but=_names(config))
            before = None if pointer(folder.state) else earlier  # else it was taken over already
            if before is not None:
                check_unchanged(before)
        tries = resume is None and bool(values_to_try(config.ewc))
        stack.enter_context(together(several=tries))
        strength = strength_of(
            config,
            folder,
            resume=resume is not None,
            continues=earlier is not None,
            judged=_foreseen(config, folder, judged, before, tell) if tries else (),
            learn=lambda trial: _learn(trial, continue_from, progress),
            tell=tell,
        )
        checkpoint = stack.enter_context(open_checkpoint(config.model))
        prepared = _prepared(config, folder, checkpoint, judged, before)
        inputs = {**prepared.inputs, "earlier": None if earlier is None else earlier.digest}
        if resume is not None:
            inputs = check_inputs(folder, inputs)
        elif not tries:
            _warn(config, prepared, checkpoint, before, tell)
        unused = launched().world > 1 and has_unused(prepared.tuned, prepared.tasks[0])
        caught = stack.enter_context(deferred_interrupts())
        among = stack.enter_context(engine(config, folder.root, unused=unused))
        among.prepare(prepared.tuned.module)
        live = begin(config, prepared)
        if before is not None:
            load_state(before.folder.state, live)
            go_on(live, prepared.held_out, anew=config)
        check_estimator(config, live)
        begun = inputs if resume is None else None
        stack.enter_context(_place(folder, config, prepared, among, begun, earlier, force))
        if among.leads:
            keep_strength(folder, strength)
        among.begin_tracking(config.model_dump(mode="json", by_alias=True))
        session = Session(
            config=config,
            engine=among,
            checkpoint=checkpoint,
            folder=folder,
            reader=prepared.reader,
            tasks=prepared.tasks,
            suites=prepared.suites(prepared.judged),
            extra=prepared.suites(prepared.extra),
            judged={**prepared.judged, **prepared.extra},
            inputs=inputs,
            strength=strength.value,
            log=Log(folder.metrics if among.leads else None),
            times=Log(folder.times if among.leads else None),
            progress=progress,
            tell=tell,
            caught=caught,
        )
        return _run(session, live)


def _run(session: Session, live: Live) -> Outcome:
    """The whole run from where its state is, or from the beginning."""
    state = session.folder.state
    session.taken = session.times.lines
    try:
        if pointer(state):
            session.log.cut(load_state(state, live))
            go_on(live, session.held_out)
        else:
            session.log.cut(0)
            live.record.anchor = measure_anchor(session)
            measure(session, live, after=None)
        while live.position.task < len(session.tasks):
            run_task(session, live)
        session.keep_snapshot(live, last=True)
        target = publish(session, live)
    finally:
        session.log.close()
        session.times.close()
    described = describe_matrix(live.record)
    outcome = Outcome(
        run=session.folder.root,
        model=target,
        state="finished",
        decision=_decision(live),
        alarms=len(live.history.alarms),
        matrix={key: described[key] for key in ("loss", "accuracy") if described[key] is not None},
        seconds=round(time.perf_counter() - session.began, 3),
        peak_memory=peak_memory_bytes(),
    )
    if session.engine.leads:
        write_run_page(session.folder.root, outcome.decision)
        end_run(session.folder, _record(outcome))
    return outcome


def _prepared(
    config: Config,
    folder: RunFolder,
    checkpoint: Checkpoint,
    judged: Judged,
    before: Earlier | None,
) -> Prepared:
    """What a run is made of, once all that can be refused has been."""
    prepared = prepare(config, checkpoint, judged)
    if before is not None and prepared.tuned.adapted:
        check_same_base(before.folder, prepared.base)
    check_disk(config, prepared, checkpoint, folder.root)
    return prepared


def _foreseen(
    config: Config, folder: RunFolder, judged: Judged, before: Earlier | None, tell: Tell
) -> frozenset[str]:
    """Refuse and warn ahead of trials, which take long and lack what these speak of.

    Gives the names of tasks with held-out rows. The model that is built for it is let go again.
    """
    with open_checkpoint(config.model) as checkpoint:
        prepared = _prepared(config, folder, checkpoint, judged, before)
        _warn(config, prepared, checkpoint, before, tell)
        return frozenset(prepared.judged)


def _repeated(folder: RunFolder, config: Config, continue_from: Path | None) -> Outcome | None:
    """What became of the same run: one of this config, this model, these rows and files."""
    done = finished(folder)
    if done is None or not is_same_config(folder, config):
        return None
    if not is_continued(folder, None if continue_from is None else RunFolder(continue_from)):
        return None
    with open_checkpoint(config.model) as checkpoint:
        prepared = prepare(config, checkpoint, judged_before(folder, but=_names(config)))
    return done if has_inputs(folder, prepared.inputs) else None


def _to_build_on(folder: RunFolder, config: Config, continue_from: Path | None) -> Earlier | None:
    """The run to continue; raises OptionError where that cannot be."""
    if continue_from is None:
        return None
    before = RunFolder(Path(continue_from))
    check_continued(before, folder.root, config)
    return earlier_run(before)


def _names(config: Config) -> set[str]:
    return {task.name for task in config.task}


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
        alarms=record["alarms"],
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
        "alarms": outcome.alarms,
        "matrix": outcome.matrix,
        "seconds": outcome.seconds,
        "peak_memory_bytes": outcome.peak_memory,
    }


def _decision(live: Live) -> str | None:
    """The gravest of the decisions at the ends of tasks."""
    found = {task["decision"] for task in live.history.tasks}
    return next((one for one in ("reject", "inconclusive", "accept") if one in found), None)


def _learn(trial: Config, continue_from: Path | None, progress: Start) -> Learned:
    """One trial run, anew, and what it left."""
    assert trial.ewc is not None
    title = f"lambda {trial.ewc.strength:g}: "
    outcome = train(
        trial,
        continue_from=continue_from,
        force=True,
        progress=lambda name, total, unit="bytes": progress(f"{title}{name}", total, unit),
        tell=_silent,
    )
    matrix = outcome.matrix.get("loss", {"entries": [[]], "tasks": []})
    last = zip(matrix["tasks"], matrix["entries"][-1], strict=True)
    done = len(matrix["entries"])
    learned = [(task, entry) for task, entry in list(last)[:done] if entry is not None]
    return Learned(outcome.model, {task: entry["value"] for task, entry in learned})


@contextmanager
def _place(
    folder: RunFolder,
    config: Config,
    prepared: Prepared,
    among: Engine,
    inputs: Mapping[str, Any] | None,
    earlier: Earlier | None,
    force: bool,
) -> Iterator[None]:
    """Within, the run's folder is there and no other run is in it.

    inputs: of a run that begins; None for one that is resumed.
    """
    held = None
    if among.leads:
        resume = inputs is None
        held = folder.lock() if resume else begin_run(folder, config_text(config), force=force)
        if inputs is not None:
            continues = None if earlier is None else earlier.folder.root
            write_inputs(folder, inputs, prepared.judged, continues)
    among.wait()
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _warn(
    config: Config,
    prepared: Prepared,
    checkpoint: Checkpoint,
    before: Earlier | None,
    tell: Tell,
) -> None:
    """Say what is likely to go wrong, while it costs nothing to stop."""
    rows = {name: len(found) for name, found in {**prepared.judged, **prepared.extra}.items()}
    folder = None if before is None else before.folder
    steps = tuple(length.steps for length in lengths_of(config, prepared.tasks, folder))
    kind = prepared.tuned.built.kind
    facts = facts_of(config, checkpoint, kind, prepared.tasks, steps, rows)
    kept = before is not None and protected_tasks(before.folder.state) > 0
    facts = replace(facts, goes_on=before is not None, protected=kept)
    for line in advice(config, facts):
        tell(f"warning: {line}")
    for line in notes(config, facts):
        tell(f"note: {line}")


def _silent(text: str) -> None:
    """Only the process that leads speaks."""
