"""Which labels the gradient is taken at.

    mc         one label per position, drawn from the model's own softmax
    empirical  the given labels
    exact      every class, weighted by its probability

Labels are an input of the estimator: once they are fixed, everything else is arithmetic. All
functions take logits (..., V) and labels (...); only positions whose label is not `IGNORE` count.
The softmax is float64, and computed a few positions at a time: that of a whole batch would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fisher.batch import IGNORE, UNKNOWN
from fisher.errors import EstimatorError
from fisher.random import uniforms

CLASS_LIMIT = 64
"""`exact` needs one backward pass per class; above this `mc` is the better bargain."""

_CHUNK = 2**18
"""Elements of float64 softmax alive at a time: two MiB. Smaller was slower, larger no faster."""


@dataclass(frozen=True)
class Softmax:
    """The distribution at some positions.

    where: R neighbours among the flattened labels. mass: (R, V) float64, proportional to the
    probabilities. total: (R, 1) what `mass` sums to. logsumexp: (R,) float64, of the logits.
    """

    where: slice
    mass: Tensor
    total: Tensor
    logsumexp: Tensor


def runs(labels: Tensor, longest: int) -> Iterator[slice]:
    """The positions that carry a loss, as runs of neighbours among the flattened labels.

    Runs and not indices, since a slice of the logits is free and a selection is a copy.
    """
    carries = np.pad((labels.reshape(-1) != IGNORE).cpu().numpy(), 1).astype(np.int8)
    steps = np.diff(carries)
    for start, stop in zip(np.flatnonzero(steps > 0), np.flatnonzero(steps < 0), strict=True):
        for begin in range(start, stop, longest):
            yield slice(begin, min(begin + longest, int(stop)))


def softmaxes(logits: Tensor, labels: Tensor) -> Iterator[Softmax]:
    """The model's distribution at every position that carries a loss, a chunk at a time."""
    flat = logits.detach().reshape(-1, logits.shape[-1])
    for where in runs(labels, max(1, _CHUNK // flat.shape[1])):
        peak = flat[where].amax(dim=1, keepdim=True).double()
        scores = flat[where].to(torch.float64, copy=True)  # float64 logits stay as they are
        mass = scores.sub_(peak).exp_()
        total = mass.sum(dim=1, keepdim=True)
        yield Softmax(where, mass, total, (total.log() + peak).squeeze(1))


def invert(softmax: Softmax, uniform: Tensor) -> Tensor:
    """(R, K) classes at which the cumulative distribution passes `uniform` (R, K) in [0, 1).

    A class of no probability is never returned: the target lies below the total, and the first
    entry above the target is one where the sum grows.
    """
    cumulative = softmax.mass.cumsum(dim=1)
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniform * total, below)
    return torch.searchsorted(cumulative, target, right=True)


def keyed_uniforms(labels: Tensor, row_ids: tuple[str, ...], seed: int, draws: int) -> Tensor:
    """(M, draws) float64, one line per position that carries a loss.

    A position is counted among its row's loss positions, so neither side nor width of the padding
    matters.
    """
    counts = (labels.reshape(len(row_ids), -1) != IGNORE).sum(dim=1).tolist()
    lines = [
        torch.stack(
            [torch.from_numpy(uniforms(seed, name, draw, count)) for draw in range(draws)], dim=1
        )
        for name, count in zip(row_ids, counts, strict=True)
    ]
    return torch.cat(lines).to(labels.device)


def mc(
    logits: Tensor, labels: Tensor, row_ids: tuple[str, ...], *, seed: int, draws: int = 1
) -> list[Tensor]:
    """`draws` tensors like `labels`: at each loss position a class drawn from softmax(logits)."""
    uniform = keyed_uniforms(labels, row_ids, seed, draws)
    drawn = torch.full((draws, labels.numel()), IGNORE, dtype=torch.int64, device=labels.device)
    done = 0
    for softmax in softmaxes(logits, labels):
        count = len(softmax.mass)
        drawn[:, softmax.where] = invert(softmax, uniform[done : done + count]).T
        done += count
    return [line.reshape(labels.shape) for line in drawn]


def empirical(labels: Tensor) -> Tensor:
    """The given labels, once they are known to be given."""
    if bool((labels == UNKNOWN).any()):
        raise EstimatorError(
            "the empirical Fisher needs the true label of every position; use mc or exact"
        )
    return labels


def exact(logits: Tensor, labels: Tensor, *, limit: int = CLASS_LIMIT) -> list[tuple[int, Tensor]]:
    """Each class of a classifier with its probability in each row: (B,) float64."""
    classes = logits.shape[-1]
    if labels.dim() != 1:
        raise EstimatorError("exact sums over the classes of one label per row; use mc")
    if classes > limit:
        raise EstimatorError(
            f"exact needs one backward pass per class: this model has {classes}, the limit is "
            f"{limit}; use mc"
        )
    probability = torch.empty(logits.shape, dtype=torch.float64, device=logits.device)
    for softmax in softmaxes(logits, labels):
        probability[softmax.where] = softmax.mass / softmax.total
    return [(index, probability[:, index]) for index in range(classes)]
