"""Losses of two models on the same rows, brought into one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mergekit_cl.decide.mcnemar import Flags
from mergekit_cl.decide.ratio import Array
from mergekit_cl.errors import MismatchError, NonFiniteError

Counts = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Rows:
    """What a model did on rows: (n,) summed nats, positions that carry a loss, and of a
    classifier whether it was right. ids: one per row, none twice."""

    ids: tuple[str, ...]
    nats: Array
    tokens: Counts
    correct: Flags | None = None


def paired(new: Rows, old: Rows) -> tuple[Rows, Rows]:
    """Both in the order of their ids.

    Raises MismatchError for different rows or tokens, repeated rows and none, NonFiniteError for a
    loss that is no number.
    """
    new, old = _sorted(new), _sorted(old)
    if new.ids != old.ids:
        missing = sorted(set(new.ids) ^ set(old.ids))
        raise MismatchError(
            "the models were measured on different rows",
            detail=f"{len(missing)} rows have a loss of one model only: {_some(missing)}",
            hint="measure both again: clmerge gate CANDIDATE REFERENCE --data PATH",
        )
    other = np.flatnonzero(new.tokens != old.tokens)
    if len(other):
        raise MismatchError(
            "the models read the same rows as different tokens, so their losses do not compare",
            detail=f"{len(other)} rows, such as {new.ids[other[0]]}: "
            f"{new.tokens[other[0]]} and {old.tokens[other[0]]} tokens",
            hint="compare models of one tokenizer",
        )
    if (new.correct is None) != (old.correct is None):
        raise MismatchError("one model is a classifier and the other is none")
    return new, old


def _sorted(rows: Rows) -> Rows:
    if not rows.ids:
        raise MismatchError("there are no rows to compare on")
    bad = np.flatnonzero(~np.isfinite(rows.nats))
    if len(bad):
        raise NonFiniteError(
            "a loss is no number",
            detail=f"{len(bad)} rows, such as {rows.ids[bad[0]]}: {rows.nats[bad[0]]}",
        )
    if (rows.tokens < 1).any():
        bad = np.flatnonzero(rows.tokens < 1)
        raise MismatchError(
            "a row has no token that carries a loss",
            detail=f"{len(bad)} rows, such as {rows.ids[bad[0]]}",
        )
    order = sorted(range(len(rows.ids)), key=rows.ids.__getitem__)
    ids = tuple(rows.ids[k] for k in order)
    twice = [one for one, next_one in pairwise(ids) if one == next_one]
    if twice:
        raise MismatchError("a row was measured twice", detail=_some(twice))
    correct = None if rows.correct is None else rows.correct[order]
    return Rows(ids, rows.nats[order], rows.tokens[order], correct)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
