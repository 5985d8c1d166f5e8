"""Sums of many blocks at once, as numbers that are still being computed.

The quantities of sums.py, for a device that must not be asked for each: a row per block and parent
in one tensor, read back when it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mergekit_cl.divergence.sums import Sums

if TYPE_CHECKING:
    import torch

COLUMNS = (
    "parent_square",
    "merged_square",
    "difference_square",
    "largest",
    "changed",
    "update_square",
    "update_survived",
    "fisher_square",
    "rounding_square",
    "conflict",
    "conflict_whole",
)
TABLE_SCRATCH = 6
"""float64 buffers that `fill_table` takes."""


def fill_table(
    table: torch.Tensor,
    merged: torch.Tensor,
    exact: torch.Tensor,
    parents: Sequence[torch.Tensor],
    fishers: Sequence[torch.Tensor | None],
    changed: Sequence[torch.Tensor],
    scratch: Sequence[torch.Tensor],
    block: int,
    base: torch.Tensor | None = None,
) -> None:
    """Write the sums of every block of `block` elements against every parent into `table`.

    table: (blocks, parents, COLUMNS) float64. merged, exact, parents, fishers: (n,), any float
    dtype; changed: (n,) bool, whether the bits differ. base: (n,), for the conflict of the parents'
    differences from it. scratch: float64 buffers of (n,). Equal to
    `block_sums` but for the order in which a block is added up: 1e-9.
    """
    import torch

    m, p, d, x, f, product = scratch[:TABLE_SCRATCH]

    def dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        torch.mul(one, other, out=product)
        return per_block(product, block)

    m.copy_(merged)
    x.copy_(exact)
    merged_square = dot(m, m)
    torch.sub(m, x, out=d)
    rounding_square = dot(d, d)
    for k, (parent, fisher, differing) in enumerate(zip(parents, fishers, changed, strict=True)):
        p.copy_(parent)
        torch.sub(m, p, out=d)
        table[:, k, 0] = dot(p, p)
        table[:, k, 1] = merged_square
        table[:, k, 2] = dot(d, d)
        table[:, k, 3] = per_block(torch.abs(d, out=product), block, "largest")
        table[:, k, 4] = per_block(differing, block)
        torch.sub(x, p, out=p)
        table[:, k, 5] = dot(p, p)
        table[:, k, 6] = dot(p, d)
        if fisher is None:
            table[:, k, 7] = 0.0
        else:
            f.copy_(fisher)
            f.mul_(d)
            table[:, k, 7] = dot(f, d)
        table[:, k, 8] = rounding_square
    table[:, :, 9:] = 0.0
    if base is None:
        return
    together, apart, origin = m.zero_(), x.zero_(), p.copy_(base)
    for parent in parents:
        d.copy_(parent).sub_(origin)
        together.add_(d)
        apart.add_(d.abs_())
    whole = per_block(apart, block).view(-1, 1)
    table[:, :, 9] = whole - per_block(together.abs_(), block).view(-1, 1)
    table[:, :, 10] = whole


def per_block(
    values: torch.Tensor, block: int, what: Literal["sum", "largest"] = "sum"
) -> torch.Tensor:
    """(blocks,): the sum, or the largest, of every `block` values; the last block may be short."""
    import torch

    whole = values.numel() // block * block
    rows = values[:whole].view(-1, block)
    rest = values[whole:]
    if what == "sum":
        parts = [rows.sum(1)] + ([rest.sum().view(1)] if rest.numel() else [])
    else:
        parts = [rows.amax(1)] + ([rest.amax().view(1)] if rest.numel() else [])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def read_table(
    table: torch.Tensor,
    counts: Sequence[int],
    fishers: Sequence[bool],
    fallback: int | None,
    *,
    based: bool = False,
) -> list[list[Sums]]:
    """Sums [block][parent] out of a filled table on the CPU.

    counts: elements of each block. fishers: whether each parent has one. fallback: entries it
    decided in all these blocks; told of the first, since sums of a tensor add them up.
    based: whether there was a base.
    """
    found = []
    for number, (row, count) in enumerate(zip(table.tolist(), counts, strict=True)):
        decided = fallback if fallback is None or number == 0 else 0
        found.append(
            [_sums(v, count, known, decided, based) for v, known in zip(row, fishers, strict=True)]
        )
    return found


def _sums(
    values: list[float], count: int, fisher_is_known: bool, fallback: int | None, based: bool
) -> Sums:
    said = dict(zip(COLUMNS, values, strict=True))
    return Sums(
        count=count,
        parent_square=said["parent_square"],
        merged_square=said["merged_square"],
        difference_square=said["difference_square"],
        largest=said["largest"],
        changed=int(said["changed"]),
        update_square=said["update_square"],
        update_survived=said["update_survived"],
        rounding_square=said["rounding_square"],
        fisher_square=said["fisher_square"] if fisher_is_known else None,
        fallback=fallback,
        conflict=said["conflict"] if based else None,
        conflict_whole=said["conflict_whole"] if based else None,
    )
