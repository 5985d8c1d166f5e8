"""What is compared: one tensor, those of its parents, and what else is read for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit_cl.checkpoint import Checkpoint, TensorInfo
from mergekit_cl.checkpoint.arrays import as_tensor

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array


@dataclass(frozen=True)
class Source:
    """One tensor of one checkpoint."""

    checkpoint: Checkpoint
    name: str

    @property
    def info(self) -> TensorInfo:
        """What its header says."""
        return self.checkpoint.tensors[self.name]

    def block(self, start: int, stop: int) -> Array:
        """Elements `start` to `stop` of it."""
        return self.checkpoint.block(self.info, start, stop)

    def as_tensor(self, block: Array) -> torch.Tensor:
        """A block of it as torch takes it."""
        return as_tensor(block, self.info.dtype)


@dataclass(frozen=True)
class Comparison:
    """One tensor against those of its parents.

    fishers: that of each parent, or None. base: what updates are measured from, if that is asked.
    """

    merged: Source
    parents: tuple[Source, ...]
    fishers: tuple[Source | None, ...]
    base: Source | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that is read for it."""
        more = (*self.fishers, self.base)
        return (self.merged, *self.parents, *(one for one in more if one is not None))

    @property
    def nbytes(self) -> int:
        """Bytes that are read for it."""
        return sum(source.info.nbytes for source in self.sources)
