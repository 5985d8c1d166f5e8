"""The public call: a diagonal Fisher of a model on some batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from torch import nn

from fisher.accumulator import Accumulator, Estimate, Loss
from fisher.batch import Batch


def estimate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    estimator: str | None = None,
    draws: int = 1,
    seed: int = 0,
    include: Callable[[str], bool] | None = None,
    frozen: Collection[str] = (),
    loss: Loss | None = None,
) -> Estimate:
    """The mean over examples of the squared gradient of -log p(y | x), per parameter.

    model: any module whose output is logits, or has `.logits`, of shape (B, C) or (B, T, V).
    estimator: `mc` (the default: labels drawn from the model), `exact` (every class), `empirical`.
    loss: (model, batch) -> (B,), one number per example, instead of the likelihood: then the model
    may be any module, and the estimate is `empirical`. See `Accumulator` for the rest, and for
    estimating batch by batch.

    >>> import torch, fisher
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> batch = fisher.Batch({"input": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}, torch.ones(2))
    >>> def loss(model, batch):
    ...     return (model(**batch.inputs)[:, 0] - batch.labels).square()
    >>> found = fisher.estimate(model, [batch], loss=loss)
    >>> found.examples, found.estimator, found.diagonal["weight"].shape
    (2, 'empirical', torch.Size([1, 2]))
    """
    accumulator = Accumulator(
        model,
        estimator=estimator,
        draws=draws,
        seed=seed,
        include=include,
        frozen=frozen,
        loss=loss,
    )
    for batch in batches:
        accumulator.add(batch)
    return accumulator.result()
