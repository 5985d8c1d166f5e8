"""Which rows of many are computed on."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from mergekit_cl.training.rows import Row


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows chosen, in the order of their keys, out of `seen` rows read (repeats included)."""

    rows: tuple[Row, ...]
    seen: int


def choose(rows: Iterable[Row], samples: int, seed: int = 0) -> Choice:
    """The `samples` rows with the smallest `key`, each content once; all where there are fewer.

    A uniform draw without replacement that depends on the set of contents and the seed alone: not
    on the order of rows, how files split them, or repeats. A smaller draw is the beginning of a
    larger one. Reads the rows once and keeps at most `samples` of them.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    kept: dict[str, Row] = {}
    worst_first: list[tuple[int, str]] = []  # a heap by the negated key: its root goes first
    seen = 0
    for row in rows:
        seen += 1
        if row.id in kept:
            continue
        order = -_number(row.id, seed)
        if len(kept) < samples:
            heapq.heappush(worst_first, (order, row.id))
        elif order > worst_first[0][0]:
            _, dropped = heapq.heapreplace(worst_first, (order, row.id))
            del kept[dropped]
        else:
            continue
        kept[row.id] = row
    return Choice(tuple(kept[name] for _, name in sorted(worst_first, reverse=True)), seen)


def key(row_id: str, seed: int) -> bytes:
    """16 bytes, uniform over rows for each seed: blake2b("seed:row id")."""
    return hashlib.blake2b(f"{seed}:{row_id}".encode("ascii"), digest_size=16).digest()


def _number(row_id: str, seed: int) -> int:
    return int.from_bytes(key(row_id, seed), "big")
