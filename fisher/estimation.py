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
    estimator: str = "mc",
    draws: int = 1,
    seed: int = 0,
    include: Callable[[str], bool] | None = None,
    frozen: Collection[str] = (),
    loss: Loss | None = None,
) -> Estimate:
    """The mean over examples of the squared gradient of -log p(y | x), per parameter.

    model: any module whose output is logits, or has `.logits`, of shape (B, C) or (B, T, V).
    estimator: `mc` (labels drawn from the model), `exact` (every class) or `empirical`. See
    `Accumulator` for the rest, and for estimating batch by batch.
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
