"""Whether kernels are compiled for this processor: it takes seconds the first time."""

from __future__ import annotations

from importlib.util import find_spec

from mergekit_cl.plan import Plan

WORTHWHILE = 2**25
"""Elements. Compiling takes about two seconds once and 0.4 s from numba's cache; a core saves 4 to
20 ns per element."""


def are_worth_compiling(plan: Plan) -> bool:
    """Whether a plan has enough for compiled kernels to do, and there is a compiler.

    Only time depends on it: compiled kernels give the same bits.
    """
    elements = sum(
        step.operands[0].info.numel
        for step in plan.steps.values()
        if step.formula is not None or step.compiled_of is not None
    )
    return elements >= WORTHWHILE and find_spec("numba") is not None
