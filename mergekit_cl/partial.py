"""Digests of tensors that a merge reads only in part: those of the whole are what is recorded."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.plan import Plan, Step
from mergekit_cl.results import TensorResult


class WholeDigests:
    """The digests of whole tensors, for operands of which only some rows are merged.

    Costs one more read of those tensors, when it is made.
    """

    def __init__(self, plan: Plan) -> None:
        names: dict[Checkpoint, set[str]] = {}
        self._in_part: set[str] = set()
        for step in plan.steps.values():
            for operand in step.operands:
                if not operand.is_whole:
                    self._in_part.add(step.name)
                    names.setdefault(operand.checkpoint, set()).add(operand.info.name)
        self._digests = {one: checkpoint_digests(one, names=found) for one, found in names.items()}

    def complete(self, step: Step, result: TensorResult) -> TensorResult:
        """The result with digests of whole operands."""
        if step.name not in self._in_part:
            return result
        found = tuple(
            digest if o.is_whole else self._digests[o.checkpoint][o.info.name]
            for o, digest in zip(step.operands, result.operand_digests, strict=True)
        )
        return result._replace(operand_digests=found)

    def complete_all(
        self, plan: Plan, results: Mapping[str, TensorResult]
    ) -> dict[str, TensorResult]:
        """All results of a plan so."""
        if not self._in_part:
            return dict(results)
        return {name: self.complete(plan.steps[name], result) for name, result in results.items()}
