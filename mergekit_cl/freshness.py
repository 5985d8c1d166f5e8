"""Companions of a checkpoint belong to its weights as they are now, and copies of a tensor are
equal, or they are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_cl.carry import check_fresh
from mergekit_cl.errors import MismatchError
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Plan, Step
from mergekit_cl.results import TensorResult
from mergekit_cl.ties import check_equal


class StaleFisherCheck:
    """Refuses a Fisher whose weight is no longer the one it was taken at, as the weight streams."""

    def __init__(self, method: Method, *, allow: bool) -> None:
        self._sidecars = method.sidecars
        self._allow = allow or not method.weighted_by_fisher

    def __call__(self, step: Step, result: TensorResult) -> None:
        if self._allow or step.kernel is None:
            return  # where a Fisher decides nothing, `stale_sidecars` leaves it out of the report
        for k, place in enumerate(step.fishers):
            sidecar = self._sidecars[k]
            if place is None or sidecar is None:
                continue
            expected = sidecar.digest(step.name)
            if expected is not None and expected != result.operand_digests[k]:
                model = step.operands[k].checkpoint.path
                raise MismatchError(
                    "a Fisher sidecar was taken at other weights",
                    detail=f"{sidecar.checkpoint.path}: {step.name} of {model} has changed since",
                    hint=f"clmerge fisher {model} --data FILE, or --allow-stale-fisher",
                )


def check_twins(step: Step, result: TensorResult) -> None:
    """Refuse a tied tensor whose further copies hold other values than what is merged."""
    for twin, k in step.twins:
        operand, digests = step.operands[twin], result.operand_digests
        check_equal(
            step.operands[k].info.name,
            operand.checkpoint.path,
            operand.info.name,
            (digests[k], digests[twin]),
        )


def stale_sidecars(
    method: Method, plan: Plan, results: Mapping[str, TensorResult]
) -> frozenset[int]:
    """Inputs whose Fisher was taken at other weights than were read."""
    found = set()
    for name, step in plan.steps.items():
        for k, place in enumerate(step.fishers):
            sidecar = method.sidecars[k]
            if place is None or sidecar is None:
                continue
            expected = sidecar.digest(name)
            if expected is not None and expected != results[name].operand_digests[k]:
                found.add(k)
    return frozenset(found)


def check_recorded(method: Method, manifest: Mapping[str, Any]) -> None:
    """Raise MismatchError where inputs were read that others were made of.

    That is where residuals belong to other weights, or an adapter says it is of another base.
    """
    inputs = manifest["inputs"]
    for k, carry in enumerate(method.carries):
        if carry is not None:
            check_fresh(carry, inputs[k]["weights_digest"], method.checkpoints[k])
    if method.base_digest not in (None, inputs[0]["weights_digest"]):
        raise MismatchError(
            "the adapter was made of another base",
            detail=f"{method.checkpoints[0].path}: its record names weights of another digest",
            hint="use that base, or --allow-other-base",
        )
