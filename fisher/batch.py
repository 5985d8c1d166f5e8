"""The one shape in which rows reach the estimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fisher.errors import BatchError

IGNORE = -100
"""The label of a position that carries no loss: the last one, padding, a prompt."""

UNKNOWN = -1
"""The label of a position that carries a loss and whose true label nobody gave."""


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them, with what their positions are worth.

    inputs: keyword arguments of the model; the first axis of each tensor is the row.
    labels: int64, the shape of the logits without their class axis: (B,) for a classifier, (B, T)
        for a language model and then already shifted: `labels[b, t]` is the target of
        `logits[b, t]`. `IGNORE` where there is no loss, `UNKNOWN` where only the true label is
        missing (enough for `mc` and `exact`).
    row_ids: one per row, a digest of its content: the key of the labels drawn for it.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    row_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.labels.dim() == 0 or not self.row_ids:
            raise BatchError("a batch needs at least one row, and labels of shape (B,) or (B, T)")
        for name, tensor in {"labels": self.labels, **self.inputs}.items():
            if tensor.dim() == 0 or tensor.shape[0] != len(self.row_ids):
                raise BatchError(
                    f"{name} has shape {tuple(tensor.shape)}, but there are {len(self.row_ids)} "
                    "row ids: the first axis of every tensor is the row"
                )
        carrying = (self.labels != IGNORE).reshape(len(self.row_ids), -1).any(dim=1)
        if not bool(carrying.all()):
            empty = self.row_ids[int(carrying.int().argmin())]
            raise BatchError(f"row {empty} has no position that carries a loss")

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def tokens(self) -> int:
        """Positions that carry a loss."""
        return int((self.labels != IGNORE).sum())

    def row(self, index: int) -> Batch:
        """Row `index` alone, as a batch of one."""
        return Batch(
            {name: tensor[index : index + 1] for name, tensor in self.inputs.items()},
            self.labels[index : index + 1],
            (self.row_ids[index],),
        )

    def to(self, device: torch.device) -> Batch:
        """The same rows on `device`."""
        return Batch(
            {name: tensor.to(device) for name, tensor in self.inputs.items()},
            self.labels.to(device),
            self.row_ids,
        )
