"""Whether kernels are compiled for this processor: it takes seconds the first time."""

from __future__ import annotations

from importlib.util import find_spec

from mergekit_cl.compiled_block import are_summed_compiled
from mergekit_cl.plan import Plan, Step

PER_TENSOR = 2**13
"""Elements that what is spared around a small tensor is worth: neighbours are merged together."""

WORTHWHILE = 2**25
"""Elements. Compiling takes about two seconds once and 0.4 s from numba's cache; a core saves 4 to
20 ns per element."""


def are_worth_compiling(plan: Plan) -> bool:
    """Whether a plan has enough for compiled kernels to do, and there is a compiler.

    Only time depends on it: compiled kernels give the same bits.
    """
    work = sum(
        step.operands[0].info.numel + PER_TENSOR
        for step in plan.steps.values()
        if step.formula is not None or step.compiled_of is not None
    )
    return work >= WORTHWHILE and find_spec("numba") is not None


def needs_torch(plan: Plan, *, compiled: bool, report: bool) -> bool:
    """Whether anything of a plan is computed with torch, which takes two seconds to load.

    compiled: whether compiled kernels are used where there are any.
    """

    def is_fast(step: Step) -> bool:
        if step.kernel is None:
            summed = not report or not step.parents or (compiled and are_summed_compiled(step))
            return summed and step.dtype == step.operands[0].info.dtype
        return compiled and step.formula is not None

    return not all(map(is_fast, plan.steps.values()))
