"""May this model's rows be taken together? Asked once, of two rows, before anything is summed.

The forward pass shows how each parameter is used. The backward pass starts from the first row's
outputs alone: a gradient that then arrives in a place held to be the second row's means that the
model lays its rows out otherwise (time before batch, say) or mixes them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fisher.batch import IGNORE, Batch
from fisher.counted import Counted
from fisher.squares.convolution import Geometry
from fisher.squares.operations import OPERATIONS
from fisher.squares.sink import Each, Part
from fisher.squares.uses import NeedsSingle, Uses

_COLUMNS = 16
"""Positions are enough to see a layout."""


class Apart:
    """A sink that keeps nothing and refuses a gradient outside the first example."""

    def matrix(self, name: str, d: Each, x: Each, transposed: bool, part: Part = None) -> None:
        """See `Sink`."""
        self._only_first(name, d)

    def rows(self, name: str, ids: Each, gradient: Each, padding_idx: int | None) -> None:
        """See `Sink`."""
        self._only_first(name, gradient)

    def vectors(self, name: str, gradient: Tensor, part: Part = None) -> None:
        """See `Sink`."""
        self._only_first(name, gradient)

    def kernel(self, name: str, d: Tensor, x: Tensor, geometry: Geometry) -> None:
        """See `Sink`."""
        self._only_first(name, d)

    def _only_first(self, name: str, gradient: Each) -> None:
        if any(bool((example != 0).any()) for example in gradient[1:]):
            raise NeedsSingle(f"rows meet before {name}")


def pair_of(batch: Batch) -> Batch:
    """Two rows of a batch (the same one twice if there is one), cut to a few columns.

    Cut only where every tensor is (B, T) of whole numbers or (B,): a second axis is then certain to
    mean positions, and not what a row is described by.
    """
    index = [0, min(1, len(batch) - 1)]
    tensors = {name: tensor[index] for name, tensor in batch.inputs.items()}
    labels = batch.labels[index]
    widths = {t.shape[1] for t in (*tensors.values(), labels) if t.dim() == 2}
    positions = [t.dim() < 2 or not t.is_floating_point() for t in tensors.values()]
    if len(widths) == 1 and all(positions) and all(t.dim() <= 2 for t in tensors.values()):
        tensors = {n: t[:, :_COLUMNS] if t.dim() == 2 else t for n, t in tensors.items()}
        labels = labels[:, :_COLUMNS] if labels.dim() == 2 else labels
    if not bool((labels != IGNORE).reshape(2, -1).any(1).all()):
        labels = torch.zeros_like(labels)
    return Batch(tensors, labels, ("first", "second"))


def why_single(
    model: nn.Module,
    outputs: Callable[[nn.Module, Batch], Tensor],
    pair: Batch,
    counted: Counted,
) -> str | None:
    """The reason why rows must be taken one at a time, or None if they may go together.

    A model that fails on the two rows is no failure yet: it may well take them singly.
    """
    uses = Uses(counted.names, pair, Apart(), OPERATIONS)
    try:
        with uses:
            root = outputs(model, pair)
        uses.forward_ended()
        if root.requires_grad:
            uses.backward(root, _first_row_only(root, pair.labels), again=False)
    except NeedsSingle as reason:
        return str(reason)
    except Exception as error:
        return f"two rows together fail: {type(error).__name__}: {error}"
    finally:
        reached = unseen(counted)
    return f"{reached[0]} enters something unseen" if reached else None


def unseen(counted: Counted) -> list[str]:
    """Parameters whose gradient went past `Uses` into `.grad`, which is cleared."""
    names = []
    for name, group in counted.parameters.items():
        for parameter in group:
            if parameter.grad is not None:
                parameter.grad = None
                names.append(name)
    return names


def _first_row_only(root: Tensor, labels: Tensor) -> Tensor:
    """A gradient at the outputs, of no special form, where the first row carries a loss."""
    gradient = torch.zeros_like(root)
    values = torch.arange(root[0].numel(), device=root.device, dtype=root.dtype).cos()
    gradient[0] = values.reshape(root[0].shape)
    if root.shape[:-1] == labels.shape:
        gradient[labels == IGNORE] = 0
    return gradient
