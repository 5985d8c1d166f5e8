"""What is summed of one block: forms that answer for any weights, or every merge of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergekit_cl.block import BLOCK
from mergekit_cl.checkpoint.arrays import as_array
from mergekit_cl.checkpoint.dtypes import itemsize, torch_dtype
from mergekit_cl.divergence.compiled import fisher_sum
from mergekit_cl.divergence.forms import fisher_squares, quadratic_forms
from mergekit_cl.merge.compiled import block_kernel, whole
from mergekit_cl.merge.formula import Formula
from mergekit_cl.merge.kernel import SCRATCH_BUFFERS
from mergekit_cl.plan import Operand, Recipe, Step

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[np.float64]]

Evaluate = Callable[[Sequence[torch.Tensor], "Buffers"], "Array"]
"""(stored operands of one block, buffers) -> its sums."""

Prepare = Callable[[Step], Evaluate]
"""What to do with every block of a tensor that is merged."""


class Buffers:
    """Buffers of one thread, made once and used for every block."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def __call__(self, name: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        """The first `count` elements of the buffer of a name."""
        key = (name, dtype)
        if key not in self._made:
            self._made[key] = torch.empty(BLOCK, dtype=dtype)
        return self._made[key][:count]


def closed_form(step: Step) -> Evaluate:
    """Sums (P, K, K) of weighted means, which answer for all weights."""

    def evaluate(stored: Sequence[torch.Tensor], buffers: Buffers) -> Array:
        whole = _with_residuals(step, stored, buffers) if any(_residuals(step)) else stored
        inputs = [whole[k] for k in step.parents]
        parents, fishers = _compared(step, stored)
        return quadratic_forms(inputs, parents, fishers, _wide(buffers, stored, len(inputs) + 2))

    return evaluate


def each_merge(recipes: Sequence[Recipe], *, compiled: bool) -> Prepare:
    """Sums (N, P) of the merges that `recipes` make, each by its own kernel.

    compiled: take kernels compiled for this processor where there are any; the merges have the same
    bits, their sums agree to 1e-9.
    """

    def prepare(step: Step) -> Evaluate:
        inputs = _inputs(step)
        made = [recipe(step.name, inputs) for recipe in recipes]
        fast = [_compiled(step, one.formula) if compiled else None for one in made]

        def evaluate(stored: Sequence[torch.Tensor], buffers: Buffers) -> Array:
            count = stored[0].numel()
            compute = torch_dtype(step.compute)
            operands = _with_residuals(step, stored, buffers)
            scratch = [buffers(f"merge{k}", compute, count) for k in range(SCRATCH_BUFFERS)]
            parents, fishers = _in_float64(step, stored, buffers)
            sums = _wide(buffers, stored, 3)
            found = []
            for one, quick in zip(made, fast, strict=True):
                squares = None if quick is None else quick(stored, buffers)
                if squares is not None:
                    found.append(squares)
                    continue
                shown = operands[: len(inputs) + len(one.more)]
                exact = one.kernel(shown, scratch).exact
                found.append(fisher_squares(exact, parents, fishers, sums))
            return np.stack(found)

        return evaluate

    return prepare


def _compiled(
    step: Step, formula: Formula | None
) -> Callable[[Sequence[torch.Tensor], Buffers], Array | None] | None:
    """The sums (P,) of one merge in one compiled pass each; None where it has no compiled kernel.

    What it gives is None for a block in which something is not finite.
    """
    if step.formula is None or formula is None or any(_residuals(step)):
        return None
    compute = torch_dtype(step.compute)

    def squares(stored: Sequence[torch.Tensor], buffers: Buffers) -> Array | None:
        count = stored[0].numel()
        rounded = as_array(buffers("rounded", torch.float32, count))
        exact = as_array(buffers("exact", compute, count))
        kernel = block_kernel([formula], lambda name, _: as_array(buffers(name, compute, count)))
        if not kernel([as_array(x) for x in stored], whole(exact), rounded, exact).finite:
            return None
        pairs = zip(*_compared(step, stored), strict=True)
        return np.asarray(
            [0.0 if f is None else fisher_sum(exact, as_array(p), as_array(f)) for p, f in pairs]
        )

    return squares


def copied_squares(step: Step, stored: Sequence[torch.Tensor], buffers: Buffers) -> Array:
    """Sums (P,) of copying the first input, whatever the weights are."""
    parents, fishers = _in_float64(step, stored, buffers)
    return fisher_squares(stored[0], parents, fishers, _wide(buffers, stored, 3))


def buffer_bytes(step: Step) -> int:
    """Bytes of one thread's buffers for a step, and of what is read ahead."""
    wide = 8 if step.compute == "F64" else 4
    merging = (2 * len(step.operands) + SCRATCH_BUFFERS + 2) * wide
    summing = (3 * len(step.parents) + 3) * 8
    sources = {id(operand.checkpoint): operand.checkpoint for operand in step.operands}
    stored = sum(itemsize(operand.info.dtype) for operand in step.operands)
    return BLOCK * (stored + merging + summing) + sum(one.buffer_bytes for one in sources.values())


def _inputs(step: Step) -> list[Operand]:
    """The inputs as the plan showed them to the recipe: the rows that all of them have."""
    inputs = list(step.operands[: len(step.parents)])
    if step.merged_numel is not None:
        shape = inputs[1].info.shape
        inputs[0] = Operand(inputs[0].checkpoint, inputs[0].info._replace(shape=shape))
    return inputs


def _residuals(step: Step) -> list[bool]:
    return [place is not None for place in step.residuals]


def _with_residuals(
    step: Step, stored: Sequence[torch.Tensor], buffers: Buffers
) -> list[torch.Tensor]:
    """All operands in the step's arithmetic, with what rounding took from inputs given back."""
    compute = torch_dtype(step.compute)
    whole = []
    for k, tensor in enumerate(stored):
        wide = tensor
        if tensor.dtype != compute:
            wide = buffers(f"operand{k}", compute, tensor.numel())
            wide.copy_(tensor)
        whole.append(wide)
    for k, place in enumerate(step.residuals):
        if place is not None:
            out = buffers(f"whole{k}", compute, stored[k].numel())
            torch.add(whole[k], whole[place], out=out)
            whole[k] = out
    return whole


def _compared(
    step: Step, stored: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Each parent's block, and its Fisher's where it has one."""
    fishers = [None if place is None else stored[place] for place in step.fishers]
    return [stored[k] for k in step.parents], fishers


def _in_float64(
    step: Step, stored: Sequence[torch.Tensor], buffers: Buffers
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    def wide(kind: str, number: int, tensor: torch.Tensor) -> torch.Tensor:
        found = buffers(f"{kind}{number}", torch.float64, tensor.numel())
        found.copy_(tensor)
        return found

    parents, fishers = _compared(step, stored)
    return (
        [wide("parent", k, tensor) for k, tensor in enumerate(parents)],
        [None if f is None else wide("fisher", k, f) for k, f in enumerate(fishers)],
    )


def _wide(buffers: Buffers, stored: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    return [buffers(f"sums{k}", torch.float64, stored[0].numel()) for k in range(count)]
