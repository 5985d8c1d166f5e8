"""Blocks of one worker through kernels compiled for this processor, with the bits of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_cl.checkpoint.arrays import Arrays, as_array, as_tensor
from mergekit_cl.divergence.compiled import block_sums
from mergekit_cl.divergence.sums import Sums
from mergekit_cl.merge.compiled import BlockKernel, block_kernel, look, whole
from mergekit_cl.merge.compiled_wide import round_into, widen_into
from mergekit_cl.merge.formula import COMPILED_DTYPES

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array
    from mergekit_cl.merge.formula import Formula
    from mergekit_cl.merge.kernel import Kernel
    from mergekit_cl.plan import Step


class CompiledBlocks:
    """report: sum up divergence. Results are views of `arrays`, valid until the next block."""

    def __init__(self, arrays: Arrays, report: bool) -> None:
        self._arrays = arrays
        self._report = report
        self._kernel: tuple[Sequence[Formula], BlockKernel] | None = None

    def merge(
        self, step: Step, formulas: Sequence[Formula], stored: Sequence[Array], bounds: Array
    ) -> tuple[Array, Array, list[list[Sums]]] | None:
        """Of one tensor or several between `bounds`: (rounded, exact, sums of each).

        None where something is not finite. step: one of their dtypes and operands. exact is in the
        type of the step's arithmetic.
        """
        if self._kernel is None or self._kernel[0] != formulas:
            self._kernel = formulas, block_kernel(formulas, self._arrays.like)
        operands = self._with_residuals(step, stored)
        if operands is None or not self._are_finite(formulas[0], step, stored):
            return None
        out = self._arrays("out", step.dtype, len(stored[0]))
        exact = self._arrays("exact", step.compute, len(stored[0]))
        done = self._kernel[1](operands, bounds, out, exact)
        if not done.finite:
            return None
        if not self._report:
            return out, exact, [[] for _ in formulas]
        return out, exact, compiled_sums(step, stored, out, exact, bounds, done.fallback)

    def merge_wide(
        self, step: Step, kernel: Kernel, stored: Sequence[Array]
    ) -> tuple[Array, torch.Tensor, list[Sums]] | None:
        """By a kernel in float64: (rounded, exact, sums); None where something is not finite."""
        count = len(stored[0])
        places = dict(enumerate(step.residuals))
        wide = []
        for k, array in enumerate(stored):
            into = self._arrays(f"operand{k}", "F64", count)
            place = places.get(k)
            if not widen_into(array, None if place is None else stored[place], into):
                return None
            wide.append(as_tensor(into, "F64"))
        exact = kernel(wide, ()).exact
        out = self._arrays("out", step.dtype, count)
        if not round_into(out, as_array(exact)):
            return None
        found: list[Sums] = []
        if self._report:
            (found,) = compiled_sums(step, stored, out, as_array(exact), whole(out), None)
        return out, exact, found

    def _with_residuals(self, step: Step, stored: Sequence[Array]) -> list[Array] | None:
        """The operands with what rounding took from them given back; None if not finite."""
        operands = list(stored)
        for k, place in enumerate(step.residuals):
            if place is not None:
                into = self._arrays(f"operand{k}", step.compute, len(stored[k]))
                if not widen_into(stored[k], stored[place], into):
                    return None
                operands[k] = into
        return operands

    def _are_finite(self, formula: Formula, step: Step, stored: Sequence[Array]) -> bool:
        """Whether operands are finite at which neither the formula nor `_with_residuals` looks."""
        seen = formula.operands.union(k for k in step.residuals if k is not None)
        rest = (array for k, array in enumerate(stored) if k not in seen)
        return not any(look(array, len(array)) for array in rest)


def compiled_formula(step: Step, *, report: bool) -> Formula | None:
    """What compiled code makes a step by and, for a report, sums up all that one says of it."""
    return None if report and step.base is not None else step.formula


def are_summed_compiled(step: Step) -> bool:
    """Whether compiled code knows every dtype of a step."""
    return {step.dtype, *(operand.info.dtype for operand in step.operands)} <= COMPILED_DTYPES


def compiled_sums(
    step: Step,
    stored: Sequence[Array],
    out: Array,
    exact: Array,
    bounds: Array,
    fallback: list[int] | None,
) -> list[list[Sums]]:
    """Sums [tensor][parent] of a finite block; arguments as of divergence/compiled.py."""
    parents = [stored[k] for k in step.parents]
    fishers = [None if k is None else stored[k] for k in step.fishers]
    return block_sums(out, exact, parents, fishers, bounds, fallback)
