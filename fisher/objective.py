"""Which gradients at the logits are pulled back through the model.

The gradient of one row's -log p(y | x), summed over its positions, is `softmax(logits) - onehot(y)`
at each position that carries a loss and 0 elsewhere. It is formed directly: the softmax is needed
for the drawing anyway, and the (B, T, V) log-probabilities that a loss function keeps are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fisher.batch import IGNORE, UNKNOWN, Batch
from fisher.errors import BatchError, DivergedError
from fisher.labels import empirical, exact, invert, keyed_uniforms, softmaxes


@dataclass(frozen=True)
class Passes:
    """The backward passes of one batch.

    gradients: at the model's outputs, one per pass; a yielded tensor changes with the next one.
    count: how many. nll: sum of the true labels' negative log-likelihood in nats. known: positions
    whose true label is known.
    """

    gradients: Iterator[Tensor]
    count: int
    nll: float
    known: int


def passes(
    logits: Tensor,
    batch: Batch,
    *,
    estimator: str,
    draws: int,
    seed: int,
    labels: Sequence[Tensor] | None = None,
) -> Passes:
    """What to pull back for one batch; `labels`, one per draw, replace those that `mc` draws."""
    _check(logits, batch)
    softmax, drawn, nll = _measure(
        logits, batch, draws if estimator == "mc" and labels is None else 0, seed
    )
    known = int((batch.labels >= 0).sum())
    if estimator == "exact":
        pairs = exact(logits, batch.labels)
        return Passes(_each_class(pairs, logits), len(pairs), nll, known)
    if labels is not None:
        drawn = list(labels)
    elif estimator == "empirical":
        drawn = [empirical(batch.labels)]
    return Passes(_each_draw(softmax, drawn), len(drawn), nll, known)


def _check(logits: Tensor, batch: Batch) -> None:
    if logits.shape[:-1] != batch.labels.shape:
        raise BatchError(
            f"logits of shape {tuple(logits.shape)} need labels of shape "
            f"{tuple(logits.shape[:-1])}, not {tuple(batch.labels.shape)}"
        )
    if logits.shape[-1] < 2:
        raise BatchError("the model has one output per row: a regression has no class to draw")
    wrong = (batch.labels >= logits.shape[-1]) | (batch.labels < 0)
    wrong &= (batch.labels != IGNORE) & (batch.labels != UNKNOWN)
    if bool(wrong.any()):
        raise BatchError(
            f"label {int(batch.labels[wrong][0])} is not one of the {logits.shape[-1]} classes"
        )


def _measure(
    logits: Tensor, batch: Batch, draws: int, seed: int
) -> tuple[Tensor, list[Tensor], float]:
    """(softmax in logits' dtype, 0 without a loss; labels drawn; sum of the true labels' nll)."""
    softmax = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    flat = softmax.view(-1, logits.shape[-1])
    scores = logits.detach().reshape(flat.shape)
    truth = batch.labels.reshape(-1)
    flat[truth == IGNORE] = 0
    drawn = torch.full((draws, truth.numel()), IGNORE, device=logits.device)
    uniform = keyed_uniforms(batch.labels, batch.row_ids, seed, draws) if draws else None
    nll = torch.zeros((), dtype=torch.float64, device=logits.device)
    done = 0
    for chunk in softmaxes(logits, batch.labels):
        where, count = chunk.where, len(chunk.mass)
        finite = chunk.logsumexp.isfinite()
        if not bool(finite.all()):
            row = (where.start + int(finite.int().argmin())) // (truth.numel() // len(batch))
            raise DivergedError(f"the model's outputs for row {batch.row_ids[row]} are not finite")
        if uniform is not None:
            drawn[:, where] = invert(chunk, uniform[done : done + count]).T
        true = truth[where]
        given = scores[where].gather(1, true.clamp(min=0).unsqueeze(1)).squeeze(1).double()
        nll += ((chunk.logsumexp - given) * (true >= 0)).sum()
        torch.div(chunk.mass, chunk.total, out=flat[where])
        done += count
    return softmax, [line.view(batch.labels.shape) for line in drawn], float(nll)


def _each_draw(softmax: Tensor, draws: Sequence[Tensor]) -> Iterator[Tensor]:
    """softmax - onehot for each draw, in one buffer whose changed entries are put back exactly."""
    flat = softmax.view(-1, softmax.shape[-1])
    for labels in draws:
        line = labels.reshape(-1)
        where = (line != IGNORE).nonzero().squeeze(1)
        kept = flat[where, line[where]]
        flat[where, line[where]] = kept - 1
        yield softmax
        flat[where, line[where]] = kept


def _each_class(pairs: Sequence[tuple[int, Tensor]], logits: Tensor) -> Iterator[Tensor]:
    """sqrt(p_y) (softmax - onehot_y) for each class y, whose square carries the weight p_y."""
    softmax = torch.stack([probability for _, probability in pairs], dim=1)
    for label, probability in pairs:
        gradient = softmax.clone()
        gradient[:, label] -= 1
        yield (gradient * probability.sqrt().unsqueeze(1)).to(logits.dtype)
