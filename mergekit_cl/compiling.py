"""What of a plan compiled kernels can do, and what is left for torch."""

from __future__ import annotations

from mergekit_cl.compiled_block import are_summed_compiled, compiled_formula
from mergekit_cl.plan import Plan, Step


def needs_torch(plan: Plan, *, compiled: bool, report: bool) -> bool:
    """Whether anything of a plan is computed with torch, which takes two seconds to load.

    compiled: whether compiled kernels are used where there are any.
    """

    def is_fast(step: Step) -> bool:
        if step.kernel is None:
            summed = not report or not step.parents or (compiled and are_summed_compiled(step))
            return summed and step.dtype == step.operands[0].info.dtype
        return compiled and compiled_formula(step, report=report) is not None

    return not all(map(is_fast, plan.steps.values()))
