"""Sums over one block from which every divergence metric is made; they add over blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCRATCH_BUFFERS = 5
_KNOWN_IN_PART = ("fisher_square", "fallback", "conflict", "conflict_whole")


@dataclass(slots=True)  # a frozen one takes five times as long to make, and there are thousands
class Sums:
    """Between merged weights m, their exact value x before rounding, and one parent p.

    None stands for a quantity nobody could compute, and stays None when added; of Fisher, fallback
    and conflict None adds nothing, and entries without a Fisher are counted instead.
    """

    count: int = 0
    parent_square: float = 0.0  # sum p^2
    merged_square: float = 0.0  # sum m^2
    difference_square: float = 0.0  # sum (m - p)^2
    largest: float = 0.0  # max |m - p|
    changed: int = 0  # entries whose bits differ
    update_square: float | None = 0.0  # sum (x - p)^2
    update_survived: float | None = 0.0  # sum (x - p)(m - p)
    rounding_square: float | None = 0.0  # sum (m - x)^2: from the others it would cancel
    fisher_square: float | None = None  # sum F_p (m - p)^2 over the entries that have a Fisher
    fallback: int | None = None  # entries a Fisher fallback decided
    without_fisher: int = 0  # entries without one, where others have one
    changed_without_fisher: int = 0  # those of them whose bits differ
    conflict: float | None = None  # sum_i (sum_k |d_ki| - |sum_k d_ki|), d from the base
    conflict_whole: float | None = None  # sum_i sum_k |d_ki|

    @property
    def fisher_gap(self) -> tuple[int, int]:
        """Entries without a Fisher, and how many of them differ from the parent's."""
        if self.fisher_square is None:
            return self.count, self.changed
        return self.without_fisher, self.changed_without_fisher

    def __add__(self, other: Sums) -> Sums:
        return total([self, other])


_NAMES = tuple(field.name for field in fields(Sums))
values_of: Callable[[Sums], tuple[Any, ...]] = attrgetter(*_NAMES)
"""The values of all fields in their order, which `Sums` takes them in."""


def total(parts: Sequence[Sums]) -> Sums:
    """The sum of parts, added in the order given so that it is the same on every run."""
    if not parts:
        return Sums()
    summed: dict[str, Any] = {}
    for name, values in zip(_NAMES, zip(*map(values_of, parts), strict=True), strict=True):
        if name in _KNOWN_IN_PART:
            known = [value for value in values if value is not None]
            summed[name] = reduce(add, known) if known else None
        elif None in values:
            summed[name] = None
        else:
            summed[name] = max(0.0, *values) if name == "largest" else reduce(add, values, 0)
    if summed["fisher_square"] is not None:
        gaps = [part.fisher_gap for part in parts]
        summed["without_fisher"] = sum(missing for missing, _ in gaps)
        summed["changed_without_fisher"] = sum(changed for _, changed in gaps)
    return Sums(**summed)


def block_sums(
    merged: torch.Tensor,
    exact: torch.Tensor | None,
    parents: Sequence[torch.Tensor],
    fishers: Sequence[torch.Tensor | None],
    changed: Sequence[int],
    fallback: int | None,
    scratch: Sequence[torch.Tensor],
) -> list[Sums]:
    """Sums of one block against each parent.

    merged, exact, parents, fishers: (n,), any float dtype; exact is None where rounding lost
    nothing to speak of or the update is not known. scratch: float64 buffers of (n,). Every product
    is of float64 values: float32 dot products differ between devices by far more than 1e-9.
    """
    import torch

    m, p, d, x, f = scratch[:SCRATCH_BUFFERS]
    m.copy_(merged)
    merged_square = float(torch.dot(m, m))
    rounding_square = None
    if exact is not None:
        x.copy_(exact)
        torch.sub(m, x, out=d)
        rounding_square = float(torch.dot(d, d))
    found = []
    for parent, fisher, differing in zip(parents, fishers, changed, strict=True):
        p.copy_(parent)
        torch.sub(m, p, out=d)
        low, high = torch.aminmax(d) if d.numel() else (d.sum(), d.sum())
        update_square = update_survived = fisher_square = None
        parent_square = float(torch.dot(p, p))
        difference_square = float(torch.dot(d, d))
        if exact is not None:
            torch.sub(x, p, out=p)
            update_square = float(torch.dot(p, p))
            update_survived = float(torch.dot(p, d))
        if fisher is not None:
            f.copy_(fisher)
            f.mul_(d)
            fisher_square = float(torch.dot(f, d))
        found.append(
            Sums(
                count=m.numel(),
                parent_square=parent_square,
                merged_square=merged_square,
                difference_square=difference_square,
                largest=max(float(high), -float(low)),
                changed=differing,
                update_square=update_square,
                update_survived=update_survived,
                rounding_square=rounding_square,
                fisher_square=fisher_square,
                fallback=fallback,
            )
        )
    return found
