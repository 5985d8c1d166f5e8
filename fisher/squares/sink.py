"""What the layers of a model and the sums of squares agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from fisher.errors import GraphError
from fisher.squares.convolution import Geometry

_P = ParamSpec("_P")
_R = TypeVar("_R")

Part = int | slice | None
"""Which part of a parameter, on its first axis: one expert's, some positions', or all of it."""

Each = Tensor | Sequence[Tensor]
"""One tensor per example: (B, P, ...), or B tensors (P_n, ...) of which any may be empty."""


def unwatched(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """What happens in `function` is nobody's forward pass: no function mode sees it.

    Not for whole backward passes: gradient checkpointing repeats a forward pass within them.
    """

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return run


class Sink(Protocol):
    """What takes per-example gradients; `name` is the parameter's, B is the number of examples."""

    def matrix(self, name: str, d: Each, x: Each, transposed: bool, part: Part = None) -> None:
        """`d[n].T @ x[n]` from d[n] (P, out) and x[n] (P, in); transposed: as (in, out)."""

    def rows(self, name: str, ids: Each, gradient: Each, padding_idx: int | None) -> None:
        """`gradient[n][p]` (P, d) added at row `ids[n][p]` (P,)."""

    def vectors(self, name: str, gradient: Tensor, part: Part = None) -> None:
        """(B, ...) as it is."""

    def kernel(self, name: str, d: Tensor, x: Tensor, geometry: Geometry) -> None:
        """A convolution's, from d (B, out, ...) and its input x (B, in, ...)."""


class Once:
    """A sink that lets a parameter's gradient through once per backward pass and kind of use."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.arrived: set[tuple[str, str, str]] = set()

    def _once(self, name: str, kind: str, part: Part = None) -> None:
        key = (name, kind, str(part))
        if key in self.arrived:
            raise GraphError(f"the gradient of {name} arrived twice in one backward pass")
        self.arrived.add(key)

    @unwatched
    def matrix(self, name: str, d: Each, x: Each, transposed: bool, part: Part = None) -> None:
        """See `Sink`."""
        self._once(name, "matrix", part)
        self._sink.matrix(name, d, x, transposed, part)

    @unwatched
    def rows(self, name: str, ids: Each, gradient: Each, padding_idx: int | None) -> None:
        """See `Sink`."""
        self._once(name, "rows")
        self._sink.rows(name, ids, gradient, padding_idx)

    @unwatched
    def vectors(self, name: str, gradient: Tensor, part: Part = None) -> None:
        """See `Sink`."""
        self._once(name, "vectors", part)
        self._sink.vectors(name, gradient, part)

    @unwatched
    def kernel(self, name: str, d: Tensor, x: Tensor, geometry: Geometry) -> None:
        """See `Sink`."""
        self._once(name, "kernel")
        self._sink.kernel(name, d, x, geometry)


@dataclass(frozen=True)
class Use:
    """One use of parameters in one batch: where their gradients go, and how many examples.

    owners: (rows,) the example of each row, None where rows are in batch order.
    """

    sink: Sink
    size: int
    weight: str | None = None
    bias: str | None = None
    transposed: bool = False
    padding_idx: int | None = None
    part: Part = None
    bias_part: Part = None
    owners: Tensor | None = None

    @unwatched
    def examples(self, tensor: Tensor) -> Each:
        """(P, last axis) per example of a tensor whose leading axes are examples and positions."""
        if self.owners is None:
            return tensor.reshape(self.size, -1, tensor.shape[-1])
        return split(tensor.reshape(-1, tensor.shape[-1]), self.owners, self.size)

    @unwatched
    def summed(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """(B, *shape): the sum over an example's positions, in float32 at least."""
        if self.owners is None:
            return tensor.reshape(self.size, -1, *shape).sum(1, dtype=wide(tensor))
        if not len(self.owners):
            return tensor.new_zeros(self.size, *shape, dtype=wide(tensor))
        rows = tensor.reshape(len(self.owners), -1, *shape).sum(1, dtype=wide(tensor))
        return rows.new_zeros(self.size, *shape).index_add_(0, self.owners.long(), rows)


@unwatched
def split(rows: Tensor, owners: Tensor, size: int) -> Sequence[Tensor]:
    """The rows of each of `size` examples, in their order."""
    order = torch.argsort(owners, stable=True)
    counts = torch.bincount(owners, minlength=size).tolist()
    return torch.split(rows[order], counts)


def wide(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, or float32 if that is wider: what squares and sums are kept in."""
    return torch.promote_types(tensor.dtype, torch.float32)
