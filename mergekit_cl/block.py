"""One worker's way through a span: read a block, merge, round, check, measure, hash, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from mergekit_cl.checkpoint.arrays import Arrays, as_array, as_tensor, bytes_of, empty, widened
from mergekit_cl.checkpoint.dtypes import itemsize, long_name, torch_dtype
from mergekit_cl.compiled_block import (
    CompiledBlocks,
    are_summed_compiled,
    compiled_formula,
    compiled_sums,
)
from mergekit_cl.digest import PieceHash, whole_digest
from mergekit_cl.divergence import sums as divergence
from mergekit_cl.divergence.conflict import conflict_sums
from mergekit_cl.divergence.sums import Sums, block_sums
from mergekit_cl.errors import MismatchError, NonFiniteError
from mergekit_cl.finite import count_nonfinite, count_nonfinite_bits, nonfinite_input
from mergekit_cl.merge import kernel as merge
from mergekit_cl.merge.compiled import whole
from mergekit_cl.neighbours import Neighbours
from mergekit_cl.plan import Operand, Step
from mergekit_cl.results import SpanResult, TensorResult, join

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array

BLOCK = 2**17
"""Elements per block: float32 scratch of this size stays in a core's cache. Divergence sums are
added per block, so their last digits depend on it."""

Write = Callable[[memoryview, int], None]
WriteAll = Callable[[memoryview], None]


class BlockWorker:
    """Buffers of one thread, made once per shape of step and used for every block."""

    def __init__(self, report: bool, allow_nonfinite: bool, compiled: bool = False) -> None:
        self.report = report
        self.allow_nonfinite = allow_nonfinite
        self.compiled = compiled
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._arrays = Arrays()
        self._fast = CompiledBlocks(self._arrays, report)

    @staticmethod
    def buffer_bytes(step: Step) -> int:
        """Bytes of buffers for a step."""
        wide = 8 if step.compute == "F64" else 4
        merging = (2 * len(step.operands) + merge.SCRATCH_BUFFERS + 2) * wide
        # Neighbours that do not lie side by side are read one by one, and then joined.
        stored = 2 * sum(itemsize(operand.info.dtype) for operand in step.operands)
        sources = {id(operand.checkpoint): operand.checkpoint for operand in step.operands}
        ahead = sum(source.buffer_bytes for source in sources.values())
        return (
            BLOCK * (stored + merging + divergence.SCRATCH_BUFFERS * 8 + itemsize(step.dtype))
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
        out_hash, hashes = PieceHash(), [PieceHash() for _ in step.operands]
        block_sums_found: list[list[Sums]] = []
        for start, stop, is_tail in blocks_of(begin, end, step.merged_numel):
            operands = step.operands[:1] if is_tail else step.operands
            stored = [o.checkpoint.block(o.info, start, stop) for o in operands]
            for digest, array in zip(hashes[: len(stored)], stored, strict=True):
                digest.update(bytes_of(array))
            if step.kernel is None or is_tail:
                out = self._copy(step, stored)
                if self.report and step.parents and not is_tail:
                    block_sums_found.append(self._copied_sums(step, stored, out))
            else:
                keeps = write_residual is not None
                out, residual, found = self._make(step, stored, start, keeps)
                block_sums_found.append(found)
                if write_residual is not None and residual is not None:
                    write_residual(bytes_of(residual), start * 4)
            out_hash.update(bytes_of(out))
            write(bytes_of(out), start * out_size)
        moved = (end - begin) * out_size
        for operand in step.operands:
            last = max(begin, min(end, operand.info.numel))
            operand.checkpoint.release(operand.info.name, begin, last)
            moved += (last - begin) * itemsize(operand.info.dtype)
        return SpanResult(out_hash.pieces(), [h.pieces() for h in hashes], block_sums_found, moved)

    def run_together(
        self, neighbours: Neighbours, write: WriteAll, write_residuals: WriteAll | None = None
    ) -> list[TensorResult]:
        """Make several small tensors at once: of each what `run` would give, to the bit.

        write: takes the bytes of all tensors, one after the other.
        """
        steps, bounds = neighbours.steps, neighbours.bounds
        stored = [
            one[0].checkpoint.blocks([operand.info for operand in one], neighbours.counts)
            for one in zip(*(step.operands for step in steps), strict=True)
        ]
        formulas = [step.formula for step in steps if step.formula is not None]
        made = self._fast.merge(steps[0], formulas, stored, bounds)
        if made is None:
            return self._run_apart(steps, write, write_residuals)
        out, exact, sums = made
        write(bytes_of(out))
        if write_residuals is not None:
            write_residuals(bytes_of(_taken(exact, out, steps[0].dtype)))
        digests = _digests(out, neighbours.counts)
        read = zip(*(_digests(array, neighbours.counts) for array in stored), strict=True)
        return [
            TensorResult(digest, of_operands, tuple(found))
            for digest, of_operands, found in zip(digests, read, sums, strict=True)
        ]

    def _run_apart(
        self, steps: Sequence[Step], write: WriteAll, write_residuals: WriteAll | None
    ) -> list[TensorResult]:
        """As `run_together`, where something is not finite: which of them, `run` says."""
        written, residuals, results = bytearray(), bytearray(), []
        for step in steps:
            made = self.run(
                step,
                0,
                step.operands[0].info.numel,
                lambda data, offset: written.extend(data),
                None if write_residuals is None else lambda data, offset: residuals.extend(data),
            )
            results.append(join([made]))
        write(memoryview(written))
        if write_residuals is not None:
            write_residuals(memoryview(residuals))
        return results

    def _make(
        self, step: Step, stored: Sequence[Array], start: int, keeps_residual: bool
    ) -> tuple[Array, Array | None, list[Sums]]:
        """The rounded block, what rounding took as float32, and the sums of its divergence."""
        if self.compiled and step.compiled_of is not None:
            done = self._fast.merge_wide(step, step.compiled_of(start), stored)
            if done is not None:
                out, wide, found = done
                rounded = as_tensor(out, step.dtype)
                return out, self._residual(rounded, wide) if keeps_residual else None, found
        formula = compiled_formula(step, report=self.report) if self.compiled else None
        if formula is not None:
            made = self._fast.merge(step, [formula], stored, whole(stored[0]))
            if made is not None:
                out, exact, sums = made
                residual = _taken(exact, out, step.dtype) if keeps_residual else None
                return out, residual, sums[0]
        out, wide, found = self._merge(step, _tensors(step, stored), start)
        rounded = as_tensor(out, step.dtype)
        return out, self._residual(rounded, wide) if keeps_residual else None, found

    def _merge(
        self, step: Step, stored: Sequence[torch.Tensor], start: int
    ) -> tuple[Array, torch.Tensor, list[Sums]]:
        """The rounded block, the exact one and the sums, by the reference formulas."""
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
                    raise nonfinite_input(f"{_place(operand)} ({bad} in one block)")
        rounded = self._arrays("out", step.dtype, count)
        out = as_tensor(rounded, step.dtype)
        round_into(out, exact)
        if not self.allow_nonfinite and count_nonfinite(out):
            raise overflow(step)
        if not self.report:
            return rounded, exact, []
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
        return rounded, exact, found

    def _copied_sums(self, step: Step, arrays: Sequence[Array], copied: Array) -> list[Sums]:
        """What copying the first input's block means to each of them."""
        if self.compiled and not self.allow_nonfinite and are_summed_compiled(step):
            return compiled_sums(step, arrays, copied, arrays[0], whole(copied), None)[0]
        import torch

        stored, out = _tensors(step, arrays), as_tensor(copied, step.dtype)
        buffers = [
            torch.empty(out.numel(), dtype=torch.float64) for _ in range(divergence.SCRATCH_BUFFERS)
        ]
        parents = [stored[k] for k in step.parents]
        fishers = [None if k is None else stored[k] for k in step.fishers]
        changed = [_changed(out, parent, parent) for parent in parents]
        return block_sums(out, stored[0], parents, fishers, changed, None, buffers)

    def _copy(self, step: Step, stored: Sequence[Array]) -> Array:
        import numpy as np

        first = step.operands[0].info
        if first.is_float and not self.allow_nonfinite:
            for operand, array in zip(step.operands[: len(stored)], stored, strict=True):
                if bad := count_nonfinite_bits(array, operand.info.dtype):
                    raise nonfinite_input(f"{_place(operand)} ({bad} in one block)")
        if step.must_agree:
            for operand, other in zip(step.operands[1:], stored[1:], strict=True):
                if not np.array_equal(stored[0], other):
                    raise MismatchError(
                        "an integer tensor differs between the inputs, and has no average",
                        detail=f"{step.name}: {step.operands[0].checkpoint.path} and "
                        f"{operand.checkpoint.path}",
                        hint="merge checkpoints that agree in it",
                    )
        if first.dtype == step.dtype:
            return stored[0]
        from mergekit_cl.merge.rounding import round_into

        out = empty(step.dtype, len(stored[0]))
        round_into(as_tensor(out, step.dtype), as_tensor(stored[0], first.dtype))
        if not self.allow_nonfinite and count_nonfinite_bits(out, step.dtype):
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

    def _residual(self, out: torch.Tensor, exact: torch.Tensor) -> Array:
        """What rounding took, as float32."""
        import torch

        rounded = self._buffer("rounded", exact.dtype, exact.numel())
        rounded.copy_(out)
        torch.sub(exact, rounded, out=rounded)
        return as_array(rounded.to(torch.float32))

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


def _digests(array: Array, counts: Sequence[int]) -> list[str]:
    """The digest of each of the small tensors of so many elements that follow each other."""
    content = bytes_of(array)
    ends = accumulate((count * array.itemsize for count in counts), initial=0)
    return [whole_digest(content[begin:end]) for begin, end in pairwise(ends)]


def _tensors(step: Step, stored: Sequence[Array]) -> list[torch.Tensor]:
    return [as_tensor(x, o.info.dtype) for x, o in zip(stored, step.operands, strict=True)]


def _taken(exact: Array, out: Array, dtype: str) -> Array:
    """What rounding took, as float32."""
    taken: Array = (exact - widened(out, dtype)).astype("float32", copy=False)
    return taken


def _place(operand: Operand) -> str:
    return f"{operand.checkpoint.path}: {operand.info.name}"


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
