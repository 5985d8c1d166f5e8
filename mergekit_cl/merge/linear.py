"""Weighted averages and weighted sums of one block.

Separate float32 `sub`, `mul`, `add`: fused forms (`lerp`, `add(alpha=)`) give other bits on other
vector units, and the bytes of a merge must not depend on the processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_cl.merge.kernel import Merged

if TYPE_CHECKING:
    import torch


def weighted_mean(
    operands: Sequence[torch.Tensor], scratch: Sequence[torch.Tensor], *, weights: Sequence[float]
) -> Merged:
    """The weighted mean of K inputs, weights summing to 1.

        j = the input of largest weight (the last of equals)
        out = x_j - sum_{k != j} w_k (x_j - x_k)

    For two inputs that is a + t(b - a) where t < 1/2, else b - (1 - t)(b - a). Where all inputs
    agree every difference is +0, so their bits survive, -0.0 included; with non-negative weights
    the result of two inputs lies between them without a clamp, because each step is monotonic.
    """
    anchor = max(range(len(weights)), key=lambda k: (weights[k], k))
    return Merged(_minus_differences(operands[anchor], operands, weights, scratch, anchor))


def weighted_deltas(
    operands: Sequence[torch.Tensor], scratch: Sequence[torch.Tensor], *, weights: Sequence[float]
) -> Merged:
    """base + sum_k w_k (x_k - base), the base being the last operand; weights as given.

    Source: Ilharco et al. 2023 (task arithmetic).
    """
    return Merged(_minus_differences(operands[-1], operands[:-1], weights, scratch, None))


def weighted_sum(
    operands: Sequence[torch.Tensor], scratch: Sequence[torch.Tensor], *, weights: Sequence[float]
) -> Merged:
    """sum_k w_k x_k, in the order of the inputs; weights as given."""
    import torch

    out, term = scratch[0], scratch[1]
    torch.mul(operands[0], weights[0], out=out)
    for operand, weight in zip(operands[1:], weights[1:], strict=True):
        torch.mul(operand, weight, out=term)
        out.add_(term)
    return Merged(out)


def _minus_differences(
    anchor: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float],
    scratch: Sequence[torch.Tensor],
    skip: int | None,
) -> torch.Tensor:
    """anchor - sum_k w_k (anchor - x_k) over every k but `skip`."""
    import torch

    total, term = scratch[0], scratch[1]
    first = True
    for k, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        if k == skip:
            continue
        into = total if first else term
        torch.sub(anchor, x, out=into)
        into.mul_(weight)
        if not first:
            total.add_(term)
        first = False
    if first:
        total.copy_(anchor)
        return total
    if min(weights) < 0:
        total.add_(0.0)  # a difference of +0 times a negative weight is -0, which would lose a -0
    return torch.sub(anchor, total, out=total)


def normalized(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights divided by their sum, in float64; raises ValueError where that is 0 or not finite."""
    try:
        total = math.fsum(weights)
    except OverflowError:
        total = math.inf
    if total == 0 or not math.isfinite(total):
        raise ValueError(f"the weights sum to {total}")
    return tuple(weight / total for weight in weights)
