"""What the layers of a model and the sums of squares agree on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fisher.errors import GraphError


class Sink(Protocol):
    """What takes per-example gradients; `name` is the parameter's, B is the number of examples."""

    def matrix(self, name: str, d: Tensor, x: Tensor, transposed: bool) -> None:
        """`d[n].T @ x[n]` from d (B, P, out) and x (B, P, in); transposed: as (in, out)."""

    def rows(self, name: str, ids: Tensor, gradient: Tensor, padding_idx: int | None) -> None:
        """`gradient[n, p]` (B, P, d) added at row `ids[n, p]` (B, P)."""

    def vectors(self, name: str, gradient: Tensor) -> None:
        """(B, ...) as it is."""


class Once:
    """A sink that lets a parameter's gradient through once per backward pass and kind of use.

    What happens behind it is nobody's forward pass: no function mode sees it.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.arrived: set[tuple[str, str]] = set()

    @contextmanager
    def _once(self, name: str, kind: str) -> Iterator[None]:
        if (name, kind) in self.arrived:
            raise GraphError(f"the gradient of {name} arrived twice in one backward pass")
        self.arrived.add((name, kind))
        with torch._C.DisableTorchFunction():
            yield

    def matrix(self, name: str, d: Tensor, x: Tensor, transposed: bool) -> None:
        """See `Sink`."""
        with self._once(name, "matrix"):
            self._sink.matrix(name, d, x, transposed)

    def rows(self, name: str, ids: Tensor, gradient: Tensor, padding_idx: int | None) -> None:
        """See `Sink`."""
        with self._once(name, "rows"):
            self._sink.rows(name, ids, gradient, padding_idx)

    def vectors(self, name: str, gradient: Tensor) -> None:
        """See `Sink`."""
        with self._once(name, "vectors"):
            self._sink.vectors(name, gradient)


@dataclass(frozen=True)
class Use:
    """One use of parameters in one batch: where their gradients go, and how many examples."""

    sink: Sink
    size: int
    weight: str | None = None
    bias: str | None = None
    transposed: bool = False
    padding_idx: int | None = None

    def examples(self, tensor: Tensor) -> Tensor:
        """(B, P, last axis) of a tensor whose leading axes are examples and positions."""
        return tensor.reshape(self.size, -1, tensor.shape[-1])

    def summed(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """(B, *shape): the sum over an example's positions, in float32 at least."""
        return tensor.reshape(self.size, -1, *shape).sum(1, dtype=wide(tensor))


def wide(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, or float32 if that is wider: what squares and sums are kept in."""
    return torch.promote_types(tensor.dtype, torch.float32)
