"""What is told of the loss of a merged model and its parents on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_cl.training.loss import Mean


@dataclass(frozen=True)
class Data:
    """Rows to measure on: at most `samples`, those that `clmerge fisher` takes with its seed 0."""

    paths: tuple[str, ...]
    text_field: str | None = None
    label_field: str | None = None
    samples: int = 256
    max_length: int = 512


@dataclass(frozen=True)
class MeasuredModel:
    """Nats per token, and of a classifier the share of rows it gets right.

    rise: the merged model's loss less this one's, paired by row; None for the merged model.
    """

    path: str
    loss: Mean
    accuracy: Mean | None
    rise: Mean | None


@dataclass(frozen=True)
class Measured:
    """What every model does on the same rows."""

    rows: int
    tokens: int
    truncated: int
    data_digest: str
    merged: MeasuredModel
    parents: tuple[MeasuredModel, ...]
