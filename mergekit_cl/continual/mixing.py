"""Which rows a batch replays, and what their loss weighs.

Everything follows from (seed, step) and the buffer: a resumed run draws what the first would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Generic, TypeVar

from mergekit_cl.continual.reservoir import keyed
from mergekit_cl.errors import OptionError

T = TypeVar("T")


@dataclass(frozen=True)
class Mix(Generic[T]):
    """One batch: how many rows of the new data, and which of the buffer.

    asked: how many the ratio calls for at this step; more than `replayed` where the buffer is
    smaller, and the new data then fills the batch.
    """

    fresh: int
    replayed: tuple[T, ...]
    asked: int


def mix(rows: Sequence[T], batch: int, ratio: float, *, step: int, seed: int = 0) -> Mix[T]:
    """The batch of step `step` (from 0): `ratio` of its `batch` rows from the buffer's `rows`.

    rows: in the buffer's own order (`Buffer.rows`). Raises OptionError for a ratio outside [0, 1).
    """
    asked = rows_of(batch, ratio, step)
    replayed = draw(rows, asked, step=step, seed=seed)
    return Mix(batch - len(replayed), replayed, asked)


def mix_beside(rows: Sequence[T], fresh: int, ratio: float, *, step: int, seed: int = 0) -> Mix[T]:
    """The same where `fresh` new rows are given: as many beside them as make `ratio` of both."""
    share = _share(ratio)
    asked = _due(fresh * share / (1 - share), step)
    return Mix(fresh, draw(rows, asked, step=step, seed=seed), asked)


def rows_of(batch: int, ratio: float, step: int) -> int:
    """How many of a batch's rows come from the buffer at one step.

    floor((t + 1) r B) - floor(t r B) with the ratio's decimal digits taken as exact: after any
    number of steps the sum is the exact share rounded down, so .1 of 8 rows is 0 or 1 by turns.
    """
    return _due(batch * _share(ratio), step)


def fresh_rows(batch: int, ratio: float, kept: int, steps: int, *, first: int = 0) -> int:
    """How many rows of `steps` batches, from step number `first` on, are new.

    kept: rows that the buffer has to replay, which does not change meanwhile.
    """
    due = batch * _share(ratio)
    if kept < due:  # then every step asks for at least as many as there are
        return steps * (batch - kept)
    return steps * batch - (floor((first + steps) * due) - floor(first * due))


def draw(rows: Sequence[T], count: int, *, step: int, seed: int = 0) -> tuple[T, ...]:
    """`count` different rows, every set of them equally likely; all rows where there are fewer.

    Floyd's algorithm (Bentley and Floyd 1987) on keyed numbers: `count` hashes for any buffer.
    """
    count = min(count, len(rows))
    chosen: dict[int, None] = {}
    for last in range(len(rows) - count, len(rows)):
        index = keyed(seed, "draw", step, last) % (last + 1)
        chosen[last if index in chosen else index] = None
    return tuple(rows[index] for index in sorted(chosen))


def loss_weights(
    fresh: int, replayed: int, fresh_tokens: int, replayed_tokens: int
) -> tuple[float, float]:
    """What a token of a new row and of a replayed row weighs so that tokens are shared like rows.

    fresh, replayed: rows. The weights keep the sum over all tokens equal to their number, so the
    weighted sum divided by the tokens is a mean; fewer rows than asked have a smaller share. Both
    are 1 where one side is empty: nothing is scaled for a buffer that holds nothing yet.
    """
    if not (fresh_tokens and replayed_tokens):
        return 1.0, 1.0
    total = fresh_tokens + replayed_tokens
    share = replayed / (fresh + replayed)
    return (1 - share) * total / fresh_tokens, share * total / replayed_tokens


@dataclass(frozen=True)
class Realised:
    """What was mixed so far, for the log; rows and tokens since the counts began."""

    fresh: int = 0
    replayed: int = 0
    fresh_tokens: int = 0
    replayed_tokens: int = 0

    def plus(
        self, fresh: int, replayed: int, fresh_tokens: int = 0, replayed_tokens: int = 0
    ) -> Realised:
        """The counts after one more batch."""
        return Realised(
            self.fresh + fresh,
            self.replayed + replayed,
            self.fresh_tokens + fresh_tokens,
            self.replayed_tokens + replayed_tokens,
        )

    @property
    def rows_share(self) -> float:
        """Replayed rows over all."""
        return self.replayed / max(self.fresh + self.replayed, 1)

    @property
    def tokens_share(self) -> float:
        """Replayed tokens over all, before any weights."""
        return self.replayed_tokens / max(self.fresh_tokens + self.replayed_tokens, 1)


def _share(ratio: float) -> Fraction:
    # As it was written: .1 is a tenth, not the nearest binary number.
    share = Fraction(repr(float(ratio))) if 0 <= ratio < 1 else Fraction(-1)
    if share < 0:
        raise OptionError(
            "the replay ratio is a share of the batch",
            detail=f"ratio {ratio}",
            hint="at least 0 and below 1: .25 replays one row in four",
        )
    return share


def _due(per_step: Fraction, step: int) -> int:
    return floor((step + 1) * per_step) - floor(step * per_step)
