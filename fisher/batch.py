"""The one shape in which rows reach the estimator."""

from __future__ import annotations

import hashlib
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
        missing (enough for `mc` and `exact`). With a loss of one's own, whatever it compares with,
        of any dtype.
    row_ids: one per row: the key of the labels drawn for it. Made from the content of the row's
        inputs where none are given; rows that are padded need ids that do not depend on that.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    row_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.row_ids and self.labels.dim() and self.inputs:
            object.__setattr__(self, "row_ids", _content_ids(self.inputs, len(self.labels)))
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


def _content_ids(inputs: Mapping[str, Tensor], count: int) -> tuple[str, ...]:
    """A digest of each row's inputs: names, dtypes, shapes and bytes."""
    digests = [hashlib.blake2b(digest_size=16) for _ in range(count)]
    for name, tensor in sorted(inputs.items()):
        if tensor.dim() == 0 or len(tensor) != count:
            continue  # refused with the other checks
        for digest, row in zip(digests, tensor.detach().cpu().contiguous(), strict=True):
            digest.update(f"{name} {row.dtype} {tuple(row.shape)};".encode())
            digest.update(row.reshape(-1).view(torch.uint8).numpy().tobytes())
    return tuple(digest.hexdigest() for digest in digests)
