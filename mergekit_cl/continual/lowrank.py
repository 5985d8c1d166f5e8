"""EWC for LoRA: the weights are protected, the factors are trained.

With W = W_0 + sum_k s_k B_k A_k and G = lambda F (W - anchor), the gradient of the penalty is

    dA_k = s_k B_k^T G        dB_k = s_k G A_k^T

A Fisher or an anchor of the factors themselves would protect the wrong thing: many pairs give the
same W, and where B starts at 0 the Fisher of A is 0. Computed weight by weight and in blocks of
rows, so that no second weight matrix is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_cl.continual.buckets import ELSEWHERE, working_dtype
from mergekit_cl.continual.ewc import Protection, protected_rows

ON_CPU = 2**20
"""Elements of a block of rows on a CPU: matrix products want more than a core's cache."""


@dataclass(frozen=True)
class Factors:
    """One low-rank update: scale * b @ a. a: (rank, inputs). b: (outputs, rank)."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True)
class LowRank:
    """A weight that is adapted: base + sum of its updates.

    name: of the weight in the protection. base: the frozen weight W_0, (outputs, inputs). factors:
    its active updates. transposed: base, Fisher and anchor are stored as (inputs, outputs), as
    Conv1D and embeddings store them.
    """

    name: str
    base: Tensor
    factors: tuple[Factors, ...]
    transposed: bool = False


def lowrank_penalty_value(
    weights: Sequence[LowRank], protection: Protection, strength: float
) -> Tensor:
    """lambda/2 sum F (W - anchor)^2 over the adapted weights; scalar float64 on the CPU."""
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for weight in weights:
            for _, fisher, moved in _blocks(weight, protection):
                total += moved.square_().mul_(fisher).sum(dtype=torch.float64).cpu()
    return total * (strength / 2)


def add_lowrank_gradient(
    weights: Sequence[LowRank], protection: Protection, strength: float
) -> None:
    """Add the penalty's gradient to those of the factors that are trained.

    A weight without Fisher is left alone; a factor whose gradient is None gets one. Rows that the
    protection does not have (a grown vocabulary) are not protected. Computed in float32, or
    float64 where a factor is; call it where `add_penalty_gradient` is called.
    """
    with torch.no_grad():
        for weight in weights:
            if weight.name not in protection.fisher:
                continue
            sides = [_sides(weight, one) for one in weight.factors]
            sums = [(torch.zeros_like(left), torch.zeros_like(right)) for left, right in sides]
            for rows, fisher, moved in _blocks(weight, protection):
                pull = moved.mul_(fisher)
                for (left, right), (for_left, for_right) in zip(sides, sums, strict=True):
                    for_left[rows] = pull @ right.T
                    for_right.addmm_(left[rows].T, pull)
            for one, (for_left, for_right) in zip(weight.factors, sums, strict=True):
                scale = one.scale * strength
                _add(one.b, for_right.T if weight.transposed else for_left, scale)
                _add(one.a, for_left.T if weight.transposed else for_right, scale)


def _sides(weight: LowRank, factors: Factors) -> tuple[Tensor, Tensor]:
    """The factors whose product is the update as the weight is stored, unscaled."""
    dtype = working_dtype((factors.a, factors.b))
    a, b = factors.a.detach().to(dtype), factors.b.detach().to(dtype)
    return (a.T, b.T) if weight.transposed else (b, a)


def _blocks(weight: LowRank, protection: Protection) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, F, W - anchor) of what is protected, both (rows, columns); the last is scratch."""
    fisher = protection.fisher.get(weight.name)
    if fisher is None:
        return
    anchor = protection.anchor[weight.name]
    protected_rows(weight.name, weight.base.shape, fisher.shape)
    sides = [_sides(weight, one) for one in weight.factors]
    limit = ON_CPU if fisher.device.type == "cpu" else ELSEWHERE
    height = max(1, limit // max(1, fisher.shape[1]))
    for start in range(0, fisher.shape[0], height):
        rows = slice(start, min(start + height, fisher.shape[0]))
        moved = weight.base[rows].to(sides[0][0].dtype) - anchor[rows]
        for (left, right), one in zip(sides, weight.factors, strict=True):
            moved.addmm_(left[rows], right, alpha=one.scale)
        yield rows, fisher[rows], moved


def _add(parameter: Tensor, gradient: Tensor, scale: float) -> None:
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(gradient.mul_(scale))
