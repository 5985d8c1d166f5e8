"""How far the quadratic form of a diagonal is from the divergence that it stands for.

    measured   1/N sum_n sum_t KL(p(. | x_n, t) || q(. | x_n, t))     p: the model, q: the other
    predicted  1/2 sum_i F_i (p_i - q_i)^2

Both in nats per example. The first is exact: from both softmaxes at every position that carries a
loss. The second is the first's second order, but of the Fisher's diagonal alone; what weights do
together is in `measured / predicted`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fisher.batch import Batch
from fisher.errors import BatchError
from fisher.labels import softmaxes
from fisher.quiet import quiet

_PIECE = 2**20


@dataclass
class Measured:
    """A sum of divergences over examples, nats."""

    examples: int = 0
    tokens: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, batch: Batch, divergences: Tensor) -> None:
        """Add a batch's divergences (B,)."""
        self.examples += len(batch)
        self.tokens += batch.tokens
        self.total += float(divergences.sum())
        self.squares += float(divergences.square().sum())

    @property
    def mean(self) -> float:
        """Nats per example."""
        return self.total / self.examples

    @property
    def standard_error(self) -> float | None:
        """Of the mean, over examples; None for fewer than two."""
        n = self.examples
        if n < 2:
            return None
        return math.sqrt(max(self.squares / n - self.mean**2, 0.0) / (n - 1))


def together(parts: Sequence[Measured]) -> Measured:
    """What several processes measured on different rows, as one."""
    return Measured(
        sum(part.examples for part in parts),
        sum(part.tokens for part in parts),
        math.fsum(part.total for part in parts),
        math.fsum(part.squares for part in parts),
    )


def divergences(model: nn.Module, other: nn.Module, batch: Batch) -> Tensor:
    """(B,) float64: KL(model || other) of each row, summed over positions that carry a loss.

    Both models are as they were afterwards. Raises BatchError where their outputs differ in shape
    or are not finite.
    """
    batch = batch.to(next(model.parameters()).device)
    with quiet(model, ()), quiet(other, ()), torch.no_grad():
        logits, others = (_logits(m(**batch.inputs)) for m in (model, other))
    return kl(logits, others, batch)


def kl(logits: Tensor, others: Tensor, batch: Batch) -> Tensor:
    """(B,) float64 nats: sum over loss positions of KL(softmax(logits) || softmax(others)).

    logits, others: (B, C) or (B, T, V). The softmaxes are float64, a few positions at a time.
    """
    if logits.shape != others.shape:
        raise BatchError(
            f"the models' outputs differ in shape: {tuple(logits.shape)} and {tuple(others.shape)}"
        )
    rows, positions = len(batch), batch.labels[0].numel()
    flat, other_flat = (x.reshape(-1, x.shape[-1]) for x in (logits, others))
    found = torch.zeros(rows, dtype=torch.float64, device=logits.device)
    for chunk in softmaxes(logits, batch.labels):
        mine = flat[chunk.where].double() - chunk.logsumexp.unsqueeze(1)
        theirs = other_flat[chunk.where].double().log_softmax(1)
        probability = chunk.mass / chunk.total
        # A class of no probability adds nothing, whatever the other model thinks of it.
        terms = torch.where(probability > 0, probability * (mine - theirs), 0.0)
        index = torch.arange(chunk.where.start, chunk.where.stop, device=found.device) // positions
        found.index_add_(0, index, terms.sum(1))
    if not bool(found.isfinite().all()):
        row = int(found.isfinite().int().argmin())
        raise BatchError(f"the models' outputs for row {batch.row_ids[row]} are not finite")
    return found.clamp_(min=0)  # below 0 is rounding


def predicted(diagonal: Mapping[str, Tensor], model: nn.Module, other: nn.Module) -> float:
    """`1/2 sum F (model - other)^2` over the diagonal's parameters, float64."""
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    total = 0.0
    for name, values in diagonal.items():
        columns = (values, ours[name].detach(), theirs[name].detach())
        for fisher, a, b in zip(
            *(torch.split(column.reshape(-1), _PIECE) for column in columns), strict=True
        ):
            apart = a.double() - b.double()
            total += float((fisher.double() * apart * apart).sum())
    return total / 2


def _logits(output: object) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits  # type: ignore[attr-defined]
    return logits
