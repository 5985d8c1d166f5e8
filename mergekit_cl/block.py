"""One worker's way through a span: read a block, merge, round, check, measure, hash, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mergekit_cl.checkpoint.dtypes import itemsize, long_name, torch_dtype
from mergekit_cl.digest import PIECE_BYTES
from mergekit_cl.divergence import sums as divergence
from mergekit_cl.divergence.conflict import conflict_sums
from mergekit_cl.divergence.sums import Sums, block_sums
from mergekit_cl.errors import MismatchError, NonFiniteError
from mergekit_cl.finite import count_nonfinite, nonfinite_input
from mergekit_cl.merge import kernel as merge
from mergekit_cl.merge.formula import WIDENED
from mergekit_cl.plan import Step

if TYPE_CHECKING:
    import torch

    from mergekit_cl.merge.compiled import PairKernel
    from mergekit_cl.merge.formula import Formula
    from mergekit_cl.merge.kernel import Kernel

BLOCK = 2**17
"""Elements per block: float32 scratch of this size stays in a core's cache. Divergence sums are
added per block, so their last digits depend on it."""

Write = Callable[[memoryview, int], None]


@dataclass(frozen=True)
class SpanResult:
    """32-byte digests of the 16 MiB pieces of output and operands, and sums [block][parent]."""

    pieces: list[bytes]
    operand_pieces: list[list[bytes]]
    block_sums: list[list[Sums]]
    bytes_moved: int


class BlockWorker:
    """Buffers of one thread, made once per shape of step and used for every block."""

    def __init__(self, report: bool, allow_nonfinite: bool, compiled: bool = False) -> None:
        self.report = report
        self.allow_nonfinite = allow_nonfinite
        self.compiled = compiled
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._kernel: tuple[Formula, PairKernel] | None = None

    @staticmethod
    def buffer_bytes(step: Step) -> int:
        """Bytes of buffers for a step."""
        wide = 8 if step.compute == "F64" else 4
        merging = (2 * len(step.operands) + merge.SCRATCH_BUFFERS + 2) * wide
        sources = {id(operand.checkpoint): operand.checkpoint for operand in step.operands}
        ahead = sum(source.buffer_bytes for source in sources.values())
        return (
            BLOCK * (merging + divergence.SCRATCH_BUFFERS * 8 + itemsize(step.dtype))
            + ahead
            + step.kernel_bytes
        )

    def run(
        self, step: Step, begin: int, end: int, write: Write, write_residual: Write | None = None
    ) -> SpanResult:
        """Make elements `begin` to `end` of one output tensor.

        write: takes bytes and their offset within the tensor; write_residual: likewise what
        rounding took, as float32. Raises NonFiniteError naming the
        operand, and MismatchError for integers that differ.
        """
        out_size = itemsize(step.dtype)
        out_hash = PieceHash(out_size)
        hashes = [PieceHash(itemsize(operand.info.dtype)) for operand in step.operands]
        block_sums_found: list[list[Sums]] = []
        for start, stop, is_tail in blocks_of(begin, end, step.merged_numel):
            operands = step.operands[:1] if is_tail else step.operands
            stored = [o.checkpoint.read(o.info.name, start, stop) for o in operands]
            for digest, tensor in zip(hashes[: len(stored)], stored, strict=True):
                digest.update(tensor)
            if step.kernel is None or is_tail:
                out = self._copy(step, stored)
                if self.report and step.parents and not is_tail:
                    block_sums_found.append(self._copied_sums(step, stored, out))
            else:
                made = self._merge_compiled(step, stored, start) if self.compiled else None
                out, exact, found = made or self._merge(step, stored, start)
                block_sums_found.append(found)
                if write_residual is not None:
                    write_residual(as_bytes(self._residual(exact, out)), start * 4)
            out_hash.update(out)
            write(as_bytes(out), start * out_size)
        moved = (end - begin) * out_size
        for operand in step.operands:
            last = max(begin, min(end, operand.info.numel))
            operand.checkpoint.release(operand.info.name, begin, last)
            moved += (last - begin) * itemsize(operand.info.dtype)
        return SpanResult(out_hash.pieces(), [h.pieces() for h in hashes], block_sums_found, moved)

    def _merge_compiled(
        self, step: Step, stored: Sequence[torch.Tensor], start: int
    ) -> tuple[torch.Tensor, torch.Tensor, list[Sums]] | None:
        """As `_merge`, with the same bits; None where something is not finite or not compiled."""
        import torch

        fallback: int | None = None
        out = self._buffer("out", torch_dtype(step.dtype), stored[0].numel())
        if step.compiled_of is not None:
            exact = self._in_float64(step, step.compiled_of(start), stored)
            if exact is None or not self._rounds(out, exact):
                return None
        elif step.formula is not None:
            exact = self._buffer("exact", torch.float32, stored[0].numel())
            done = self._pair_kernel(step.formula)(stored, out, exact)
            fallback = done.fallback
            if not done.finite:
                return None
        else:
            return None
        if not self.report:
            return out, exact, []
        from mergekit_cl.divergence.compiled import block_sums as compiled_sums

        parents = [stored[k] for k in step.parents]
        fishers = [None if k is None else stored[k] for k in step.fishers]
        return out, exact, compiled_sums(out, exact, parents, fishers, fallback)

    def _pair_kernel(self, formula: Formula) -> PairKernel:
        if self._kernel is None or self._kernel[0] != formula:
            from mergekit_cl.merge.compiled import pair_kernel

            self._kernel = formula, pair_kernel(formula)
        return self._kernel[1]

    def _in_float64(
        self, step: Step, kernel: Kernel, stored: Sequence[torch.Tensor]
    ) -> torch.Tensor | None:
        """The exact block; None where an operand is not finite."""
        import torch

        from mergekit_cl.merge.compiled_wide import widen_into

        places = dict(enumerate(step.residuals))
        wide = []
        for k, tensor in enumerate(stored):
            wide.append(self._buffer(f"operand{k}", torch.float64, tensor.numel()))
            place = places.get(k)
            if not widen_into(tensor, None if place is None else stored[place], wide[k]):
                return None
        return kernel(wide, ()).exact

    @staticmethod
    def _rounds(out: torch.Tensor, exact: torch.Tensor) -> bool:
        from mergekit_cl.merge.compiled_wide import round_into

        return round_into(out, exact)

    def _merge(
        self, step: Step, stored: Sequence[torch.Tensor], start: int
    ) -> tuple[torch.Tensor, torch.Tensor, list[Sums]]:
        """The rounded block, the exact one, and the sums of its divergence."""
        import torch

        from mergekit_cl.merge.rounding import round_into

        kernel = step.kernel_at(start)
        assert kernel is not None
        count = stored[0].numel()
        compute = torch_dtype(step.compute)
        wide = [self._widen(f"operand{k}", x, compute) for k, x in enumerate(stored)]
        scratch = [self._buffer(f"merge{k}", compute, count) for k in range(merge.SCRATCH_BUFFERS)]
        exact, fallback = kernel(self._with_residuals(step, wide), scratch)
        if self.allow_nonfinite:
            exact = keep_agreement(exact, [wide[k] for k in step.parents])
        else:
            for operand, tensor in zip(step.operands, wide, strict=True):
                if bad := count_nonfinite(tensor):
                    place = f"{operand.checkpoint.path}: {operand.info.name}"
                    raise nonfinite_input(f"{place} ({bad} in one block)")
        out = self._buffer("out", torch_dtype(step.dtype), count)
        round_into(out, exact)
        if not self.allow_nonfinite and count_nonfinite(out):
            raise overflow(step)
        if not self.report:
            return out, exact, []
        parents = [wide[k] for k in step.parents]
        fishers = [None if k is None else wide[k] for k in step.fishers]
        changed = [_changed(out, stored[k], wide[k]) for k in step.parents]
        buffers = [
            self._buffer(f"sums{k}", torch.float64, count)
            for k in range(divergence.SCRATCH_BUFFERS)
        ]
        decided = None if fallback is None else int(fallback)
        found = block_sums(out, exact, parents, fishers, changed, decided, buffers)
        if step.base is not None:
            pulled = conflict_sums(parents, wide[step.base], buffers)
            found = [replace(one, conflict=pulled[0], conflict_whole=pulled[1]) for one in found]
        return out, exact, found

    def _copied_sums(
        self, step: Step, stored: Sequence[torch.Tensor], out: torch.Tensor
    ) -> list[Sums]:
        """What copying the first input's block means to each of them."""
        import torch

        parents = [stored[k] for k in step.parents]
        fishers = [None if k is None else stored[k] for k in step.fishers]
        known = all(
            dtype in WIDENED for dtype in (step.dtype, *(o.info.dtype for o in step.operands))
        )
        if self.compiled and known and not self.allow_nonfinite:
            from mergekit_cl.divergence.compiled import block_sums as compiled_sums

            return compiled_sums(out, stored[0], parents, fishers, None)
        buffers = [
            torch.empty(out.numel(), dtype=torch.float64) for _ in range(divergence.SCRATCH_BUFFERS)
        ]
        changed = [_changed(out, parent, parent) for parent in parents]
        return block_sums(out, stored[0], parents, fishers, changed, None, buffers)

    def _copy(self, step: Step, stored: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        from mergekit_cl.merge.rounding import round_into

        first = stored[0]
        if step.operands[0].info.is_float and not self.allow_nonfinite:
            for operand, tensor in zip(step.operands[: len(stored)], stored, strict=True):
                if bad := count_nonfinite(tensor):
                    place = f"{operand.checkpoint.path}: {operand.info.name}"
                    raise nonfinite_input(f"{place} ({bad} in one block)")
        if step.must_agree:
            for operand, other in zip(step.operands[1:], stored[1:], strict=True):
                if not torch.equal(first, other):
                    raise MismatchError(
                        "an integer tensor differs between the inputs, and has no average",
                        detail=f"{step.name}: {step.operands[0].checkpoint.path} and "
                        f"{operand.checkpoint.path}",
                        hint="merge checkpoints that agree in it",
                    )
        dtype = torch_dtype(step.dtype)
        if first.dtype == dtype:
            return first
        out = torch.empty(first.numel(), dtype=dtype)
        round_into(out, first)
        if not self.allow_nonfinite and count_nonfinite(out):
            raise overflow(step)
        return out

    def _with_residuals(self, step: Step, wide: list[torch.Tensor]) -> list[torch.Tensor]:
        """The operands with what rounding took from them given back."""
        import torch

        whole = list(wide)
        for k, place in enumerate(step.residuals):
            if place is not None:
                whole[k] = self._buffer(f"whole{k}", wide[k].dtype, wide[k].numel())
                torch.add(wide[k], wide[place], out=whole[k])
        return whole

    def _residual(self, exact: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        import torch

        rounded = self._buffer("rounded", exact.dtype, exact.numel())
        rounded.copy_(out)
        torch.sub(exact, rounded, out=rounded)
        return rounded.to(torch.float32)

    def _widen(self, name: str, stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if stored.dtype == dtype:
            return stored
        wide = self._buffer(name, dtype, stored.numel())
        wide.copy_(stored)
        return wide

    def _buffer(self, name: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        import torch

        key = (name, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(BLOCK, dtype=dtype)
        return self._buffers[key][:count]


def blocks_of(begin: int, end: int, merged: int | None) -> Iterator[tuple[int, int, bool]]:
    """(first element, end, whether it lies beyond what is merged) of each block; at least one.

    The block in which merging ends is cut in two there, so that all others stay on the grid that
    digests and sums are taken on.
    """
    for start in range(begin, max(end, begin + 1), BLOCK):
        stop = min(start + BLOCK, end)
        if merged is None or stop <= merged:
            yield start, stop, False
        elif start >= merged:
            yield start, stop, True
        else:
            yield start, merged, False
            yield merged, stop, True


class PieceHash:
    """Digests of consecutive 16 MiB pieces of a tensor, fed block by block."""

    def __init__(self, item_bytes: int) -> None:
        from blake3 import blake3

        self._new = blake3
        self._limit = PIECE_BYTES // item_bytes
        self._hash = blake3()
        self._filled = 0
        self._pieces: list[bytes] = []

    def update(self, block: torch.Tensor) -> None:
        """Add a block; whole ones divide pieces evenly, so none crosses a boundary."""
        self._hash.update(as_bytes(block))
        self._filled += block.numel()
        if self._filled == self._limit:
            self._close()

    def pieces(self) -> list[bytes]:
        """All digests, the last one of what remained."""
        if self._filled:
            self._close()
        return self._pieces

    def _close(self) -> None:
        self._pieces.append(self._hash.digest())
        self._hash = self._new()
        self._filled = 0


def as_bytes(block: torch.Tensor) -> memoryview:
    """The memory of a flat CPU tensor."""
    import torch

    return block.contiguous().view(torch.uint8).numpy().data


def _changed(out: torch.Tensor, stored: torch.Tensor, wide: torch.Tensor) -> int:
    import torch

    if out.dtype == stored.dtype:
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[out.element_size()]
        here = stored.to(out.device).view(bits)
        return int(torch.ne(out.view(bits), here).count_nonzero())
    return int(torch.ne(out, wide).count_nonzero())


def keep_agreement(exact: torch.Tensor, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """An infinity in which all inputs agree is kept: differences of it are NaN."""
    import torch

    if not inputs:
        return exact
    agree = inputs[0].isinf()
    for other in inputs[1:]:
        agree &= inputs[0] == other
    return torch.where(agree, inputs[0], exact)


def overflow(step: Step) -> NonFiniteError:
    """The error for finite inputs of which the result is not."""
    return NonFiniteError(
        "the merge overflows",
        detail=f"{step.name}: finite inputs, but too large for {long_name(step.dtype)}",
        hint="use smaller weights or a wider --dtype, or --allow-nonfinite",
    )
