"""One optimizer step's rows over all processes, and the part of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fisher.batch import IGNORE
from mergekit_cl.training.encode import EncodedRow


@dataclass(frozen=True)
class Part:
    """Rows that are computed on together. fresh: how many of them, from the first, are new.

    weights: what each row's tokens count, one per row.
    """

    rows: tuple[EncodedRow, ...]
    fresh: tuple[bool, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of a step: new ones, then replayed ones; weights: of a token of each kind."""

    fresh: tuple[EncodedRow, ...]
    replayed: tuple[EncodedRow, ...] = ()
    weights: tuple[float, float] = (1.0, 1.0)

    @property
    def fresh_tokens(self) -> int:
        """Positions of new rows that carry a loss."""
        return sum(map(tokens_of, self.fresh))

    @property
    def replayed_tokens(self) -> int:
        """The same of replayed rows."""
        return sum(map(tokens_of, self.replayed))

    @property
    def divisor(self) -> float:
        """What the weighted sum of all tokens' losses is divided by."""
        return self.weights[0] * self.fresh_tokens + self.weights[1] * self.replayed_tokens

    def parts(self, rank: int, world: int, count: int) -> list[Part]:
        """What one process computes, in `count` parts of nearly the same number of rows.

        Rows are dealt like cards. Needs at least `world * count` rows: no process waits for one
        that has nothing to do.
        """
        marked = [(row, True) for row in self.fresh] + [(row, False) for row in self.replayed]
        mine = marked[rank::world]
        return [_part(mine[number::count], self.weights) for number in range(count)]


def tokens_of(row: EncodedRow) -> int:
    """Positions of a row that carry a loss."""
    return sum(label != IGNORE for label in row.labels)


def _part(rows: Sequence[tuple[EncodedRow, bool]], weights: tuple[float, float]) -> Part:
    return Part(
        tuple(row for row, _ in rows),
        tuple(fresh for _, fresh in rows),
        tuple(weights[0] if fresh else weights[1] for _, fresh in rows),
    )
