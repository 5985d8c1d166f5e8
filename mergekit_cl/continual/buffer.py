"""Rows kept for replay, by one of three policies.

Whatever the policy, the buffer follows from the rows, labels, tasks and steps that were added, not
from their order or from who added them: resuming and merging need nothing but the buffer itself.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from mergekit_cl.continual.balanced import losing_class
from mergekit_cl.continual.gdumb import arrival
from mergekit_cl.continual.reservoir import distinct_seen, keyed
from mergekit_cl.errors import MismatchError, OptionError
from mergekit_cl.training.rows import Row

Policy = Literal["reservoir", "balanced", "gdumb"]
POLICIES: tuple[str, ...] = get_args(Policy)

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """One row of a buffer with where it came from.

    label: as text, None for rows without. task, step: of the first time the row was added.
    """

    row: Row
    label: str | None
    task: str
    step: int

    @property
    def group(self) -> str:
        """What the buffer is balanced over: the label, or the task of a row without one."""
        return self.task if self.label is None else self.label


@dataclass(frozen=True)
class Description:
    """What is logged of a buffer.

    seen: rows added, repeats included. distinct: different rows among them, an estimate once the
    reservoir is full, None for other policies. classes, tasks: rows kept of each. balance: the
    smallest class over the largest. age: mean steps since the rows came.
    """

    rows: int
    capacity: int
    seen: int
    distinct: float | None
    classes: dict[str, int]
    tasks: dict[str, int]
    balance: float | None
    age: float | None


class Buffer:
    """At most `capacity` different rows of all that were added.

    policy: `reservoir` keeps a uniform sample, `balanced` as many of each class, `gdumb` the first
    of each class. held_out: ids of rows that must never be replayed, such as validation rows.
    Raises OptionError for a capacity below 1 or an unknown policy.
    """

    def __init__(
        self,
        capacity: int,
        seed: int = 0,
        policy: Policy = "reservoir",
        held_out: Iterable[str] = (),
    ) -> None:
        if capacity < 1:
            raise OptionError("a replay buffer needs room for a row", detail=f"capacity {capacity}")
        if policy not in POLICIES:
            raise OptionError(
                "unknown buffer policy", detail=policy, hint=f"one of {', '.join(POLICIES)}"
            )
        self.capacity = capacity
        self.seed = seed
        self.policy: Policy = policy
        self.seen = 0
        self._held_out = set(held_out)
        self._orders: dict[str, list[tuple[Order, str]]] = {}
        self._kept: dict[tuple[str, str], Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, row: Row, label: object, task: str, step: int) -> bool:
        """Offer one row; whether the buffer holds it now. A row that is held out is not counted."""
        if row.id in self._held_out:
            return False
        self.seen += 1
        return self._offer(Kept(row, None if label is None else str(label), task, step))

    def merge(self, other: Buffer) -> None:
        """Take in another process's buffer: as if this one had seen its rows too.

        Raises MismatchError where capacity, seed or policy differ.
        """
        mine = (self.capacity, self.seed, self.policy)
        theirs = (other.capacity, other.seed, other.policy)
        if mine != theirs:
            raise MismatchError(
                "these buffers do not belong together",
                detail=f"capacity, seed, policy: {mine} and {theirs}",
            )
        self.seen += other.seen
        for kept in other._kept.values():
            if kept.row.id not in self._held_out:
                self._offer(kept)

    def hold_out(self, ids: Collection[str]) -> tuple[Kept, ...]:
        """Never keep these rows from now on; returns those that were in the buffer and are gone."""
        self._held_out |= set(ids)
        gone = [kept for kept in self.rows() if kept.row.id in self._held_out]
        for kept in gone:
            self._remove(self._group(kept), kept)
        return tuple(gone)

    def rows(self) -> tuple[Kept, ...]:
        """What is kept, in an order that does not depend on how it came here."""
        return tuple(
            self._kept[group, row_id]
            for group in sorted(self._orders)
            for _, row_id in self._orders[group]
        )

    def describe(self, step: int | None = None) -> Description:
        """What to log; ages count back from `step`."""
        rows = self.rows()
        classes, tasks = _counts(kept.group for kept in rows), _counts(kept.task for kept in rows)
        distinct = None
        if self.policy == "reservoir":
            distinct = distinct_seen([keyed(self.seed, k.row.id) for k in rows], self.capacity)
        return Description(
            len(rows),
            self.capacity,
            self.seen,
            distinct,
            classes,
            tasks,
            min(classes.values()) / max(classes.values()) if classes else None,
            sum(step - kept.step for kept in rows) / len(rows)
            if rows and step is not None
            else None,
        )

    def _offer(self, kept: Kept) -> bool:
        group = self._group(kept)
        before = self._kept.get((group, kept.row.id))
        if before is not None:
            first = min(before, kept, key=lambda one: (one.step, one.task))
            if first is before:
                return True
            self._remove(group, before)
        self._insert(group, kept)
        if len(self._kept) > self.capacity:
            sizes = {name: len(orders) for name, orders in self._orders.items()}
            loser = losing_class(sizes, self.seed)
            self._remove(loser, self._kept[loser, self._orders[loser][-1][1]])
        return (group, kept.row.id) in self._kept

    def _group(self, kept: Kept) -> str:
        return "" if self.policy == "reservoir" else kept.group

    def _order(self, kept: Kept) -> Order:
        if self.policy == "gdumb":
            return arrival(self.seed, kept.step, kept.row.id)
        return (keyed(self.seed, kept.row.id),)

    def _insert(self, group: str, kept: Kept) -> None:
        self._kept[group, kept.row.id] = kept
        insort(self._orders.setdefault(group, []), (self._order(kept), kept.row.id))

    def _remove(self, group: str, kept: Kept) -> None:
        orders = self._orders[group]
        del orders[bisect_left(orders, (self._order(kept), kept.row.id))]
        if not orders:
            del self._orders[group]
        del self._kept[group, kept.row.id]


def _counts(names: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
