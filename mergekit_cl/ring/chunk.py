"""One chunk on the card: widen, merge, round, count what is not finite, sum up divergence.

Nothing here asks the card for a value: counts and sums go into a table, which is read when it has
come back. A row of it per block of 2^17 elements: (not finite in each operand, not finite in the
output, decided by a fallback in the whole chunk or -1, then the sums against each parent).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_cl.block import BLOCK, keep_agreement, overflow
from mergekit_cl.checkpoint.dtypes import itemsize, torch_dtype
from mergekit_cl.divergence.sums import Sums
from mergekit_cl.divergence.tables import COLUMNS, TABLE_SCRATCH, fill_table, per_block, read_table
from mergekit_cl.finite import nonfinite_input
from mergekit_cl.merge import kernel as merge
from mergekit_cl.plan import Step
from mergekit_cl.ring.carving import Carving, aligned

if TYPE_CHECKING:
    import torch

TEMPORARIES = 4
"""64-bit values per element that torch makes on the way: masks, and rounding float64 to odd."""


def table_columns(step: Step) -> int:
    """Numbers per block."""
    return len(step.operands) + 2 + len(step.parents) * len(COLUMNS)


def block_counts(count: int) -> list[int]:
    """Elements of each block of a chunk."""
    return [min(BLOCK, count - start) for start in range(0, count, BLOCK)]


def stored_bytes(step: Step, count: int) -> int:
    """Bytes of the operands of a chunk as `carve_stored` lays them."""
    return sum(aligned(count * itemsize(operand.info.dtype)) for operand in step.operands)


def carve_stored(step: Step, buffer: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Every operand's part of an input half, in its stored dtype."""
    carving = Carving(buffer)
    return [carving.take(torch_dtype(operand.info.dtype), count) for operand in step.operands]


def written_bytes(step: Step, count: int, keeps_residual: bool) -> int:
    """Bytes of what a chunk makes as `carve_written` lays it."""
    return aligned(count * itemsize(step.dtype)) + (count * 4 if keeps_residual else 0)


def carve_written(
    step: Step, buffer: torch.Tensor, count: int, keeps_residual: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rounded output, and what rounding took as float32."""
    import torch

    carving = Carving(buffer)
    out = carving.take(torch_dtype(step.dtype), count)
    return out, carving.take(torch.float32, count) if keeps_residual else None


def table_bytes(step: Step, count: int) -> int:
    """Bytes of a chunk's table."""
    return len(block_counts(count)) * table_columns(step) * 8


def carve_table(step: Step, buffer: torch.Tensor, count: int) -> torch.Tensor:
    """(blocks, columns) float64."""
    import torch

    blocks = len(block_counts(count))
    return Carving(buffer).take(torch.float64, blocks * table_columns(step)).view(blocks, -1)


def scratch_bytes(step: Step, count: int) -> int:
    """Bytes on the card that merging a chunk takes beside its slot."""
    wide = 8 if step.compute == "F64" else 4
    buffers = 2 * len(step.operands) + merge.SCRATCH_BUFFERS + 1
    return (
        buffers * aligned(count * wide)
        + TABLE_SCRATCH * aligned(count * 8)
        + TEMPORARIES * aligned(count * 8)
    )


def merge_chunk(
    step: Step,
    start: int,
    stored: Sequence[torch.Tensor],
    out: torch.Tensor,
    residual: torch.Tensor | None,
    table: torch.Tensor,
    scratch: torch.Tensor,
    *,
    report: bool,
    allow_nonfinite: bool,
) -> None:
    """Fill `out`, `residual` and `table` from the stored operands of one chunk.

    start: the chunk's first element.
    All on one device. The bytes of `out` are those of a CPU, whatever the chunk.
    """
    import torch

    from mergekit_cl.merge.rounding import round_into

    kernel = step.kernel_at(start)
    assert kernel is not None
    carving = Carving(scratch)
    compute = torch_dtype(step.compute)
    count = out.numel()
    wide = [x if x.dtype == compute else carving.take(compute, count).copy_(x) for x in stored]
    whole = list(wide)
    for k, place in enumerate(step.residuals):
        if place is not None:
            whole[k] = torch.add(wide[k], wide[place], out=carving.take(compute, count))
    buffers = [carving.take(compute, count) for _ in range(merge.SCRATCH_BUFFERS)]
    exact, fallback = kernel(whole, buffers)
    if allow_nonfinite:
        exact = keep_agreement(exact, [wide[k] for k in step.parents])
    round_into(out, exact)
    if residual is not None:
        rounded = carving.take(compute, count).copy_(out)
        residual.copy_(torch.sub(exact, rounded, out=rounded))
    operands = len(wide)
    for k, tensor in enumerate([*wide, out]):
        table[:, k] = per_block(~tensor.isfinite(), BLOCK)
    table[:, operands + 1] = -1 if fallback is None else fallback
    if report:
        fill_table(
            table[:, operands + 2 :].view(len(table), len(step.parents), len(COLUMNS)),
            out,
            exact,
            [wide[k] for k in step.parents],
            [None if k is None else wide[k] for k in step.fishers],
            [_differs(out, stored[k], wide[k]) for k in step.parents],
            [carving.take(torch.float64, count) for _ in range(TABLE_SCRATCH)],
            BLOCK,
            None if step.base is None else wide[step.base],
        )


def read_chunk(
    step: Step, table: torch.Tensor, count: int, *, report: bool, allow_nonfinite: bool
) -> list[list[Sums]]:
    """Sums [block][parent] of a chunk by its table on the host.

    Raises NonFiniteError for the block and operand a CPU would have named.
    """
    operands = len(step.operands)
    if not allow_nonfinite:
        _refuse_nonfinite(step, table[:, : operands + 1].tolist())
    counts = block_counts(count)
    if not report:
        return [[] for _ in counts]
    fallback = int(table[0, operands + 1])
    known = [place is not None for place in step.fishers]
    rows = table[:, operands + 2 :].reshape(len(counts), len(known), len(COLUMNS))
    decided = None if fallback < 0 else fallback
    return read_table(rows, counts, known, decided, based=step.base is not None)


def _refuse_nonfinite(step: Step, rows: list[list[float]]) -> None:
    for row in rows:
        for operand, bad in zip(step.operands, row, strict=False):
            if bad:
                place = f"{operand.checkpoint.path}: {operand.info.name}"
                raise nonfinite_input(f"{place} ({int(bad)} in one block)")
        if row[-1]:
            raise overflow(step)


def _differs(out: torch.Tensor, stored: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    import torch

    if out.dtype == stored.dtype:
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[out.element_size()]
        return torch.ne(out.view(bits), stored.view(bits))
    return torch.ne(out, wide)
