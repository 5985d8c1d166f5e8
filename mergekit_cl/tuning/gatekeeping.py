"""The gate inside training: looks at the update so far, and takes back what makes things worse."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.decide.gate import Decision
from mergekit_cl.digest import bytes_digest
from mergekit_cl.gating.document import document
from mergekit_cl.gating.gate import Verdict, judge
from mergekit_cl.gating.losses import Measured, Model
from mergekit_cl.gating.rowsfile import write_rows
from mergekit_cl.gating.run import Outcome, Rule, decide_measured
from mergekit_cl.output.durable import write_durably
from mergekit_cl.report.gate import look_line
from mergekit_cl.training.encode import Encoded
from mergekit_cl.training.loss import RowLosses, measure_suites
from mergekit_cl.training.rows import data_digest
from mergekit_cl.tuning.evaluating import as_published, evaluate
from mergekit_cl.tuning.live import Live, Suites
from mergekit_cl.tuning.resuming import FREE
from mergekit_cl.tuning.session import Session
from mergekit_cl.tuning.state import load_state


def suites_of(session: Session, live: Live) -> dict[str, Encoded]:
    """What the update of the task at work is judged by: every task so far, and named suites."""
    ahead = {task.name for task in session.tasks[live.position.task + 1 :]}
    tasks = {name: rows for name, rows in session.suites.items() if name not in ahead}
    return {**tasks, **session.extra}


def begin_gate(session: Session, live: Live) -> None:
    """Measure the model before the task: what its update is held against."""
    if session.config.gate is None:
        return
    suites = suites_of(session, live)
    with as_published(session.config, live):
        live.record.reference = evaluate(session.engine, live, suites, session.rows("gate", suites))
    live.record.revision += 1


def measure_anchor(session: Session) -> dict[str, RowLosses]:
    """The losses of the release that small losses could add up against; empty without one.

    Raises MismatchError for a model that reads the rows as other tokens.
    """
    gate = session.config.gate
    if gate is None or gate.anchor is None:
        return {}
    suites = {**session.suites, **session.extra}
    with open_checkpoint(gate.anchor) as anchor:
        losses, _ = measure_suites(
            anchor,
            {name: session.judged[name] for name in suites},
            max_length=session.reader.max_length,
            completion_only=session.reader.completion_only,
            device=session.engine.device,
            like=suites,
            advance=session.rows("anchor", suites),
        )
        return losses


def look(session: Session, live: Live, *, last: bool) -> tuple[Decision, bool]:
    """Judge the update so far; gives the decision and whether the update was taken back.

    last: at the end of the task. A rejection brings everything back to the last accepted state, by
    the way a run is resumed; what is inconclusive stays, unless the config says to drop it.
    """
    gate = session.config.gate
    assert gate is not None
    measured = _measure(session, live)
    outcome = _decide(session, live, measured)
    found = outcome.verdict
    dropped = found.decision == "inconclusive" and last and gate.inconclusive == "drop"
    said = {
        "task": session.tasks[live.position.task].name,
        "step": live.position.steps,
        "last": last,
        "dropped": dropped,
        **{key: value for key, value in document(outcome).items() if key != "seconds"},
    }
    live.history.verdicts.append(said)
    session.write(live, "gate", last=last, dropped=dropped, **_brief(said))
    if session.engine.leads:
        name = f"{len(live.history.verdicts):04d}-{said['task']}-{live.position.steps}"
        text = json.dumps(said, indent=2, sort_keys=True, allow_nan=False)
        write_durably(session.folder.verdicts / f"{name}.json", f"{text}\n".encode())
        write_rows(session.folder.verdicts / f"{name}.rows.jsonl", measured)
    session.tell(look_line(found, live.position.steps))
    back = dropped or found.decision == "reject"
    if back:
        _take_back(session, live, found)
    return found.decision, back


def _measure(session: Session, live: Live) -> Measured:
    """The update so far, the model before the task and the anchor, on the same rows."""
    suites = suites_of(session, live)
    with as_published(session.config, live):
        candidate = evaluate(session.engine, live, suites, session.rows("gate", suites))
    losses: dict[str, Suites] = {"candidate": candidate, "reference": live.record.reference}
    models = {
        "candidate": _model(session, live.position.steps),
        "reference": _model(session, live.position.steps - live.position.step),
    }
    if live.record.anchor:
        losses["anchor"] = {name: live.record.anchor[name] for name in suites}
        anchor = str(session.config.gate and session.config.gate.anchor)
        models["anchor"] = Model(anchor, session.inputs["files"]["gate.anchor"])
    digests = {name: data_digest(row.id for row in rows.rows) for name, rows in suites.items()}
    return Measured(models, digests, losses, session.reader.max_length)


def _model(session: Session, step: int) -> Model:
    """A model that was never written, by what decides it: config, weights, rows and step."""
    config = session.config.model_dump(mode="json", by_alias=True, exclude=set(FREE))
    known = [config, session.inputs, step]
    digest = bytes_digest(json.dumps(known, sort_keys=True).encode())
    return Model(f"{session.folder.root} at step {step}", digest)


def _decide(session: Session, live: Live, measured: Measured) -> Outcome:
    """By the ledger, where there is one; else looks are counted within the run."""
    gate = session.config.gate
    assert gate is not None
    ledger = None if gate.ledger is None else Path(gate.ledger)
    rule = Rule(gate.margin, gate.alpha, gate.min_rows, session.config.seed, ledger=ledger)
    if ledger is not None:
        outcome = None
        if session.engine.leads:
            outcome = decide_measured(measured, rule, time.perf_counter())
        found: Outcome = session.engine.exchange(outcome)[0]
        return found
    looks = live.history.looks
    for name in measured.suites:
        looks[name] = looks.get(name, 0) + 1
    losses = dict(measured.losses)
    verdict = judge(
        losses.pop("candidate"),
        losses,
        margin=rule.margin,
        alpha=rule.alpha,
        min_rows=rule.min_rows,
        looks={name: looks[name] for name in measured.suites} if _several(session, live) else None,
        seed=rule.seed,
        draws=rule.draws,
    )
    return Outcome(verdict, rule, measured, 0.0)


def _several(session: Session, live: Live) -> bool:
    """Whether the run, or those it continues, look more than once, so that alpha must be shared."""
    gate = session.config.gate
    if len(session.tasks) > 1 or (gate is not None and gate.every > 0):
        return True
    return max(live.history.looks.values()) > 1


def _brief(said: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict as the log holds it; all of it is in `verdicts/`."""
    keys = ("suite", "against", "rows", "delta", "interval", "margin", "alpha", "power", "decision")
    comparisons = [{key: one[key] for key in keys} for one in said["comparisons"]]
    return {"decision": said["decision"], "look": said["look"], "comparisons": comparisons}


def _take_back(session: Session, live: Live, verdict: Verdict) -> None:
    """Return to the last accepted state."""
    before = live.position.steps
    session.engine.wait()
    load_state(session.folder.state, live, generation="accepted", rollback=True)
    session.write(live, "rollback", rejected=before)
    worst = max(verdict.judged, key=lambda one: one.comparison.delta)
    what = "rejected" if verdict.decision == "reject" else "dropped as inconclusive"
    session.tell(
        f"{what}: {worst.suite} loses {worst.comparison.delta:.4f} nats per token against the "
        f"{worst.against}; back to step {live.position.steps}"
    )
