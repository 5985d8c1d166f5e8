"""The slow exact estimator: one row at a time, by the definition.

    F = 1/N sum_n sum_y w_ny (d log p(y | x_n) / d theta)^2

w is 1 at the given label (`empirical`), 1/K at each of K drawn labels (`mc`) and p(y | x_n) at
every class (`exact`). It shares nothing with the fast path but the drawing of labels, runs in any
precision, and is what the fast path is tested against.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fisher.batch import IGNORE, Batch
from fisher.labels import empirical, exact, mc


def reference(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    estimator: str = "mc",
    draws: int = 1,
    seed: int = 0,
    labels: Sequence[Sequence[Tensor]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """The diagonal per parameter, mean per example, computed on a copy of `model` in `dtype`.

    labels: per batch and per draw, a tensor like `Batch.labels`; given labels replace the drawn
        ones, since another precision may draw others.
    """
    twin = copy.deepcopy(model).to(dtype).eval()
    config: Any = getattr(twin, "config", None)
    if config is not None:
        config.use_cache = False
    parameters = {name: p.requires_grad_(True) for name, p in twin.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    examples = 0
    for number, batch in enumerate(batches):
        for index in range(len(batch)):
            row = batch.row(index)
            examples += 1
            logits = _logits(twin(**_in(row.inputs, dtype)))
            fixed = None if labels is None else [t[index : index + 1] for t in labels[number]]
            for target, weight in _targets(logits, row, estimator, draws, seed, fixed):
                nll = F.cross_entropy(
                    logits.flatten(0, -2), target.flatten(), reduction="sum", ignore_index=IGNORE
                )
                gradients = torch.autograd.grad(
                    nll, list(parameters.values()), retain_graph=True, allow_unused=True
                )
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    if gradient is not None:
                        total += weight * gradient.square()
    return {name: total / examples for name, total in sums.items()}


def _in(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's inputs with numbers in `dtype`; ids and masks of integers stay."""
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def _targets(
    logits: Tensor,
    row: Batch,
    estimator: str,
    draws: int,
    seed: int,
    fixed: list[Tensor] | None,
) -> Iterator[tuple[Tensor, float]]:
    """The labels of one row, each with its weight in the sum."""
    if estimator == "exact":
        for label, probability in exact(logits, row.labels):
            yield torch.full_like(row.labels, label), float(probability)
    elif estimator == "empirical":
        yield empirical(row.labels) if fixed is None else fixed[0], 1.0
    else:
        drawn = fixed or mc(logits, row.labels, row.row_ids, seed=seed, draws=draws)
        for target in drawn:
            yield target, 1.0 / draws
