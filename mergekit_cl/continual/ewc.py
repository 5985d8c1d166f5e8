"""Elastic weight consolidation: weights that mattered are pulled back to where they were.

    L = task loss + lambda/2 sum_i F_i (theta_i - anchor_i)^2

Applied to gradients once per optimizer step, after clipping, never to the loss: so it is the same
for any gradient accumulation, loss scaling and number of processes.
Source: Kirkpatrick et al. 2017 (`sum`); Schwarz et al. 2018, Huszar 2018 (`online`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_cl.continual.buckets import in_buckets, local
from mergekit_cl.continual.compiled import add_pull, are_compiled
from mergekit_cl.errors import MismatchError


@dataclass(frozen=True)
class Protection:
    """A quadratic around weights worth keeping: 1/2 sum F (theta - anchor)^2.

    fisher: {parameter: diagonal Fisher}, raw, mean per example as a sidecar stores it, >= 0.
    anchor: {parameter: weights}, the same names and shapes. Any float dtype; the penalty is
    computed in float32, or float64 where a tensor is float64. On the parameters' devices.
    Raises MismatchError where names or shapes differ.
    """

    fisher: Mapping[str, Tensor]
    anchor: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        odd = sorted(self.fisher.keys() ^ self.anchor.keys())
        if odd:
            raise MismatchError(
                "Fisher and anchor name different parameters",
                detail=f"{len(odd)} are in one only, such as {odd[0]}",
            )
        for name, fisher in self.fisher.items():
            if fisher.shape != self.anchor[name].shape:
                raise MismatchError(
                    "Fisher and anchor differ in shape",
                    detail=f"{name}: {list(fisher.shape)} and {list(self.anchor[name].shape)}",
                )


def penalty_value(
    parameters: Mapping[str, Tensor], protection: Protection, strength: float
) -> Tensor:
    """lambda/2 sum F (theta - anchor)^2 over the parameters that are protected.

    Scalar float64 on the CPU, in nats per example where F is a sidecar's. Of sharded parameters
    only this process's part: add up over processes.
    """
    total = torch.zeros((), dtype=torch.float64)
    groups = ((None, group[:3]) for _, group in matched(parameters, protection))
    with torch.no_grad():
        for bucket in in_buckets(groups):
            thetas, fishers, anchors = bucket.columns
            (moved,) = bucket.scratch
            torch._foreach_copy_(moved, thetas)
            torch._foreach_sub_(moved, anchors)
            torch._foreach_mul_(moved, moved)
            torch._foreach_mul_(moved, fishers)
            total += sum((part.sum(dtype=torch.float64) for part in moved), torch.zeros(())).cpu()
    return total * (strength / 2)


def penalty_sums(
    parameters: Mapping[str, Tensor], protection: Protection, strength: float
) -> tuple[float, float]:
    """Value of the penalty, and the sum of squares of its gradient, in one pass, for the log.

    Of sharded parameters only this process's part: add up over processes.
    """
    value = square = torch.zeros((), dtype=torch.float64)
    groups = ((None, group[:3]) for _, group in matched(parameters, protection))
    with torch.no_grad():
        for bucket in in_buckets(groups, scratches=2):
            thetas, fishers, anchors = bucket.columns
            moved, pull = bucket.scratch
            torch._foreach_copy_(moved, thetas)
            torch._foreach_sub_(moved, anchors)
            torch._foreach_copy_(pull, moved)
            torch._foreach_mul_(pull, fishers)
            for one, other in zip(moved, pull, strict=True):
                value = value + one.mul_(other).sum(dtype=torch.float64).cpu()
                square = square + other.square_().sum(dtype=torch.float64).cpu()
    return float(value) * strength / 2, float(square) * strength**2


def add_penalty_gradient(
    parameters: Mapping[str, Tensor], protection: Protection, strength: float
) -> None:
    """grad += lambda F (theta - anchor), rounded once to the gradient's dtype.

    Parameters that are frozen or not protected are left alone; a protected one whose gradient is
    None gets one. Call it after clipping (and after unscaling, under a gradient scaler), once per
    optimizer step. Needs half a megabyte of scratch on a CPU, 64 MiB on an accelerator. Raises
    MismatchError for a sparse gradient and for shapes that are not a grown vocabulary.
    """
    with torch.no_grad():
        for bucket in in_buckets(_with_gradients(parameters, protection)):
            if are_compiled(bucket.columns):
                add_pull(bucket.columns, strength)
                continue
            thetas, fishers, anchors, gradients = bucket.columns
            (pull,) = bucket.scratch
            torch._foreach_copy_(pull, thetas)
            torch._foreach_sub_(pull, anchors)
            torch._foreach_mul_(pull, fishers)
            torch._foreach_mul_(pull, strength)
            torch._foreach_add_(gradients, pull)


def matched(
    parameters: Mapping[str, Tensor], protection: Protection
) -> Iterator[tuple[str, tuple[Tensor, Tensor, Tensor, slice | None]]]:
    """Name and (theta, F, anchor, rows) of what is protected; rows: None unless it has grown.

    By name: a protection that was stored and read has another order, and must add up to the bit.
    """
    for name, fisher in sorted(protection.fisher.items()):
        if name not in parameters:
            continue
        parameter = parameters[name]
        rows = protected_rows(name, parameter.shape, fisher.shape)
        theta = local(parameter.detach())
        if rows is not None and theta.shape != parameter.shape:
            raise MismatchError(
                "a parameter that has grown cannot be protected while it is sharded",
                detail=f"{name}: {list(parameter.shape)}, the protection has {list(fisher.shape)}",
            )
        theta = theta if rows is None else theta[rows]
        yield name, (theta, local(fisher), local(protection.anchor[name]), rows)


def _with_gradients(
    parameters: Mapping[str, Tensor], protection: Protection
) -> Iterator[tuple[None, tuple[Tensor, ...]]]:
    for name, (theta, fisher, anchor, rows) in matched(parameters, protection):
        parameter = parameters[name]
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad.is_sparse:
            raise MismatchError(
                "a sparse gradient cannot hold the penalty of every row",
                detail=name,
                hint="build the embedding with sparse=False",
            )
        gradient = local(parameter.grad)
        yield None, (theta, fisher, anchor, gradient if rows is None else gradient[rows])


def protected_rows(name: str, now: torch.Size, then: torch.Size) -> slice | None:
    """The rows that a protection has, where the parameter has more; None where it has the same.

    Raises MismatchError for any other difference of shapes.
    """
    if now == then:
        return None
    if len(now) == len(then) > 0 and now[1:] == then[1:] and now[0] > then[0]:
        return slice(0, then[0])
    raise MismatchError(
        "a parameter has not the shape it was protected at",
        detail=f"{name}: {list(now)}, the protection has {list(then)}",
        hint="rows may be added at the end (a grown vocabulary), nothing else may change",
    )
