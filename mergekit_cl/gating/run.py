"""A gate from what was asked to a verdict: measure or read, look up the ledger, decide."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.decide.bootstrap import DRAWS
from mergekit_cl.decide.gate import ALPHA, MARGIN, MIN_ROWS
from mergekit_cl.gating.gate import Verdict, judge
from mergekit_cl.gating.ledger import Ledger, Test, locked_ledger, read_ledger
from mergekit_cl.gating.losses import Measured
from mergekit_cl.gating.models import Subject

if TYPE_CHECKING:
    from mergekit_cl.report.progress import Start


@dataclass(frozen=True)
class Rule:
    """How it is decided. ledger: where looks are counted; None: this is the only look."""

    margin: float = MARGIN
    alpha: float = ALPHA
    min_rows: int = MIN_ROWS
    seed: int = 0
    draws: int = DRAWS
    ledger: Path | None = None


@dataclass(frozen=True)
class Measurement:
    """What is measured: models on `data` as it was typed (suites.py), and where."""

    subjects: tuple[Subject, ...]
    data: tuple[str, ...]
    text_field: str | None = None
    label_field: str | None = None
    samples: int | None = None
    max_length: int = 512
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The verdict, the rule and the losses it rests on, how long it took."""

    verdict: Verdict
    rule: Rule
    measured: Measured
    seconds: float
    notes: tuple[str, ...] = field(default=())


def measure_all(wanted: Measurement, rule: Rule, progress: Start) -> Measured:
    """Measure every model on every suite; what can be refused is refused before the first runs.

    Raises InputError for a model or ledger, DataError for rows, MismatchError for models that read
    rows as different tokens.
    """
    from mergekit_cl.gating.measuring import Place, check_models, measure
    from mergekit_cl.gating.suites import name_suites, read_suites

    if rule.ledger is not None:
        read_ledger(rule.ledger)
    suites = read_suites(
        name_suites(wanted.data),
        text_field=wanted.text_field,
        label_field=wanted.label_field,
        samples=wanted.samples,
        max_length=wanted.max_length,
    )
    check_models(wanted.subjects)
    place = Place(wanted.device, wanted.threads)
    return measure(
        wanted.subjects, suites, max_length=wanted.max_length, place=place, progress=progress
    )


def decide_measured(measured: Measured, rule: Rule, started: float) -> Outcome:
    """Decide by losses, and count the look where there is a ledger.

    started: `time.perf_counter()` when the run began. A suite of fewer than `min_rows` rows is not
    tested, so it takes no look.
    """
    test = _test(measured, rule)
    if rule.ledger is None:
        verdict = _judge(measured, rule, None)
    else:
        with locked_ledger(rule.ledger) as ledger:
            looks = {name: ledger.look_of(digest, test) for name, digest in measured.suites.items()}
            verdict = _judge(measured, rule, looks)
            _take(ledger, verdict, measured, rule, test)
    return Outcome(
        verdict, rule, measured, time.perf_counter() - started, (*measured.notes, *_same(measured))
    )


def _judge(measured: Measured, rule: Rule, looks: Mapping[str, int] | None) -> Verdict:
    losses = dict(measured.losses)
    candidate = losses.pop("candidate")
    return judge(
        candidate,
        losses,
        margin=rule.margin,
        alpha=rule.alpha,
        min_rows=rule.min_rows,
        looks=looks,
        seed=rule.seed,
        draws=rule.draws,
    )


def _test(measured: Measured, rule: Rule) -> Test:
    """What makes two tests on the same rows the same test."""
    return {
        "models": {role: one.digest for role, one in measured.models.items()},
        "margin": rule.margin,
        "alpha": rule.alpha,
        "seed": rule.seed,
        "draws": rule.draws,
        "max_length": measured.max_length,
    }


def _take(ledger: Ledger, verdict: Verdict, measured: Measured, rule: Rule, test: Test) -> None:
    for name, digest in measured.suites.items():
        mine = [one for one in verdict.judged if one.suite == name]
        if mine[0].comparison.rows < rule.min_rows:
            continue
        came_of_it: dict[str, Any] = {
            "suite": name,
            "candidate": measured.models["candidate"].path,
            "alpha": mine[0].comparison.alpha,
            "decisions": {one.against: one.comparison.decision for one in mine},
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        ledger.take(digest, test, came_of_it)


def _same(measured: Measured) -> list[str]:
    digest = measured.models["candidate"].digest
    return [
        f"the candidate and the {role} are the same model: this accepts whatever it is"
        for role, one in measured.models.items()
        if role != "candidate" and one.digest == digest
    ]
