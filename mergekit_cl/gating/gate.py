"""A candidate against other models on several suites of rows, as one verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mergekit_cl.decide.bootstrap import DRAWS
from mergekit_cl.decide.gate import ALPHA, MARGIN, MIN_ROWS, Comparison, Decision, compare, decide
from mergekit_cl.decide.pairing import Rows
from mergekit_cl.decide.spending import spend
from mergekit_cl.errors import InputError, MismatchError
from mergekit_cl.gating.losses import Losses


@dataclass(frozen=True)
class Judged:
    """One comparison: the suite, whom the candidate was held against, which look at the
    suite's rows this was; None where looks are not counted."""

    suite: str
    against: str
    look: int | None
    comparison: Comparison


@dataclass(frozen=True)
class Verdict:
    """The decision and what it rests on, in the order of suites, then of models."""

    decision: Decision
    judged: tuple[Judged, ...]


def judge(
    candidate: Mapping[str, Losses],
    against: Mapping[str, Mapping[str, Losses]],
    *,
    margin: float = MARGIN,
    alpha: float = ALPHA,
    min_rows: int = MIN_ROWS,
    looks: Mapping[str, int] | int | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Verdict:
    """Judge a candidate by its losses {suite: losses} against {name: {suite: losses}}.

    against: such as {"reference": ..., "anchor": ...}; each must know every suite. looks: which
    look at its rows this is, counted from 1, for all suites or by suite; alpha is then that of all
    looks together, of which each spends a part (`decide.spending`). None: this is the only look.
    Raises what `decide.gate.compare` raises, the suite and model named, and MismatchError for
    suites that one side lacks.
    """
    for name, theirs in against.items():
        if theirs.keys() != candidate.keys():
            lacking = ", ".join(sorted(theirs.keys() ^ candidate.keys()))
            raise MismatchError(
                "the models were measured on different suites",
                detail=f"the candidate or the {name} lacks {lacking}",
            )
    judged = []
    for suite, losses in candidate.items():
        new = _rows(losses)
        look = looks[suite] if isinstance(looks, Mapping) else looks
        for name, theirs in against.items():
            try:
                found = compare(
                    new,
                    _rows(theirs[suite]),
                    margin=margin,
                    alpha=alpha if look is None else spend(alpha, look),
                    min_rows=min_rows,
                    seed=seed,
                    draws=draws,
                )
            except InputError as error:
                where = f"suite {suite}, candidate and {name}"
                error.detail = f"{where}: {error.detail}" if error.detail else where
                raise
            judged.append(Judged(suite, name, look, found))
    return Verdict(decide(one.comparison.decision for one in judged), tuple(judged))


def _rows(losses: Losses) -> Rows:
    right = None if losses.correct is None else np.asarray(losses.correct, dtype=np.bool_)
    return Rows(
        tuple(losses.ids),
        np.asarray(losses.nats, dtype=np.float64),
        np.asarray(losses.tokens, dtype=np.int64),
        right,
    )
