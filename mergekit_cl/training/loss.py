"""A model's loss on rows, row by row: what `--data` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fisher.batch import Batch
from fisher.labels import softmaxes
from mergekit_cl.decide.ratio import ratio
from mergekit_cl.errors import DataError, MismatchError, NonFiniteError
from mergekit_cl.training.encode import Encoded, auto_batch_size, encode
from mergekit_cl.training.model import architecture_of, build
from mergekit_cl.training.rows import Row
from mergekit_cl.training.tokenizer import load_tokenizer, pad_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mergekit_cl.checkpoint import Checkpoint


@dataclass(frozen=True)
class RowLosses:
    """Per row, in one order for every model: `ids`, nats, positions that carry a loss, and for a
    classifier whether the likeliest class is the row's."""

    ids: tuple[str, ...]
    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    correct: tuple[bool, ...] | None


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error over rows; the error is None for fewer than two rows."""

    value: float
    standard_error: float | None


def measure_losses(
    checkpoint: Checkpoint,
    rows: Sequence[Row],
    *,
    max_length: int,
    device: str | torch.device,
    like: Encoded | None,
    advance: Callable[[int], None],
) -> tuple[RowLosses, Encoded]:
    """The loss of a checkpoint's model on each row: `measure_suites` of one suite."""
    losses, encoded = measure_suites(
        checkpoint,
        {"": rows},
        max_length=max_length,
        device=device,
        like=None if like is None else {"": like},
        advance=advance,
    )
    return losses[""], encoded[""]


def measure_suites(
    checkpoint: Checkpoint,
    suites: Mapping[str, Sequence[Row]],
    *,
    adapter: Path | None = None,
    max_length: int,
    completion_only: bool = True,
    device: str | torch.device,
    like: Mapping[str, Encoded] | None,
    advance: Callable[[int], None],
) -> tuple[dict[str, RowLosses], dict[str, Encoded]]:
    """The loss of a checkpoint's model on each row of each suite, computed in float32.

    adapter: a PEFT folder whose update is added to the weights. like: the rows as another model
    reads them. Raises MismatchError where this one reads them otherwise (another tokenizer: losses
    per token do not compare), DataError for unlabelled rows of a classifier, NonFiniteError where
    the model's outputs are not finite.
    """
    tokenizer = load_tokenizer(checkpoint.root)
    config = checkpoint.config or {}
    task = architecture_of(checkpoint).task
    encoded = {
        name: encode(
            rows,
            tokenizer,
            task=task,
            config=config,
            max_length=max_length,
            completion_only=completion_only,
        )
        for name, rows in suites.items()
    }
    for name, one in encoded.items():
        _check_comparable(checkpoint, one, None if like is None else like[name])
    pad = pad_id(tokenizer, config)
    built = build(checkpoint, adapter=adapter, device=device, pad_id=pad)
    losses = {
        name: row_losses(built.model, one, where=f"{checkpoint.path} on --data", advance=advance)
        for name, one in encoded.items()
    }
    return losses, encoded


def _check_comparable(checkpoint: Checkpoint, encoded: Encoded, like: Encoded | None) -> None:
    if encoded.unlabelled:
        raise DataError(
            "measuring a classifier's loss needs labels",
            detail=f"{encoded.unlabelled} of {len(encoded.rows)} rows have none",
            hint="name their field with --label-field",
        )
    if like is not None and like.rows != encoded.rows:
        raise MismatchError(
            "the models read the same rows as different tokens, so their losses do not compare",
            detail=f"{checkpoint.path}: another tokenizer, template or length limit",
            hint="compare models of one tokenizer, with the files it was trained with",
        )


def mean_loss(losses: RowLosses) -> Mean:
    """Nats per token: the sum of all rows over the sum of their tokens."""
    return _per_token(losses.nats, losses.tokens)


def mean_rise(merged: RowLosses, parent: RowLosses) -> Mean:
    """How many nats per token more the merged model has than the parent, paired by row."""
    return _per_token([m - p for m, p in zip(merged.nats, parent.nats, strict=True)], merged.tokens)


def accuracy(losses: RowLosses) -> Mean | None:
    """The share of rows whose likeliest class is theirs; None for a language model."""
    if losses.correct is None:
        return None
    return _per_token([float(right) for right in losses.correct], [1] * len(losses.correct))


def _per_token(values: Sequence[float], tokens: Sequence[int]) -> Mean:
    return Mean(*ratio(np.array(values), np.array(tokens, dtype=np.float64)))


def row_losses(
    model: Any,
    encoded: Encoded,
    *,
    where: str,
    advance: Callable[[int], None],
    batch_size: int | None = None,
) -> RowLosses:
    """The loss of a model in eval mode on encoded rows, in their order.

    where: what is measured on what, for messages. advance: is told of rows as they are done. Raises
    NonFiniteError where outputs are not finite.
    """
    parameters = list(model.parameters())
    device = parameters[0].device
    size = batch_size or auto_batch_size(sum(p.numel() for p in parameters), encoded.longest)
    nats: list[float] = []
    tokens: list[int] = []
    correct: list[bool] = []
    with torch.no_grad():  # not inference_mode, whose tensors FSDP cannot train with later
        for batch in encoded.batches(size):
            here = batch.to(device)
            logits = model(**here.inputs).logits
            found = _row_nats(logits, here)
            if not bool(found.isfinite().all()):
                raise NonFiniteError("the model's outputs are not finite", detail=where)
            nats += found.tolist()
            tokens += (here.labels.reshape(len(here), -1) >= 0).sum(dim=1).tolist()
            if encoded.task == "classifier":
                correct += (logits.argmax(dim=-1) == here.labels).tolist()
            advance(len(batch))
    ids = tuple(row.id for row in encoded.rows)
    right = tuple(correct) if encoded.task == "classifier" else None
    return RowLosses(ids, tuple(nats), tuple(tokens), right)


def _row_nats(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B,) float64: -log p of each row's labels, summed over its positions."""
    scores = logits.reshape(-1, logits.shape[-1])
    labels = batch.labels.reshape(-1)
    rows = torch.arange(len(batch), device=labels.device)
    rows = rows.repeat_interleave(labels.numel() // len(batch))
    nats = torch.zeros(len(batch), dtype=torch.float64, device=labels.device)
    for chunk in softmaxes(logits, batch.labels):
        true = labels[chunk.where]
        given = scores[chunk.where].gather(1, true.unsqueeze(1)).squeeze(1).double()
        nats.index_add_(0, rows[chunk.where], chunk.logsumexp - given)
    return nats
