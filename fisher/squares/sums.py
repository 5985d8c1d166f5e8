"""Where squares of per-example gradients are added up.

A per-example gradient exists only as long as it takes to square it: in one scratch block that all
weights and examples share. Blocks are the outer loop and examples the inner one, so the block of
the running sum stays in the cache while every example adds to it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fisher.tied import CrossTerm, row_sums, seen

_CPU_BLOCK = 2**18
"""Elements of scratch on a CPU: one MiB, a second-level cache. Half was slower, twice no faster."""

_GPU_BLOCK = 2**24
"""On a GPU a block must be large enough to fill the device."""


class Sums:
    """The running sums of squares, and of each tensor's trace, over examples.

    square: name -> sum over examples of the squared gradient, float32 (float64 if the weight is).
    trace, trace_square: (P,) float64 in the order of `square`: sums over examples of the example's
        summed squares and of that number squared.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.square = {
            name: torch.zeros(
                weight.shape,
                dtype=torch.promote_types(weight.dtype, torch.float32),
                device=weight.device,
            )
            for name, weight in weights.items()
        }
        self.trace = torch.zeros(len(self.square), dtype=torch.float64)
        self.trace_square = torch.zeros_like(self.trace)
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._example: dict[str, Tensor] = {}
        self._crosses: Mapping[str, CrossTerm] = {}

    def begin(self, size: int, crosses: Mapping[str, CrossTerm]) -> None:
        """Start a batch of `size` examples; `crosses` are its weights that are used twice."""
        self._crosses = crosses
        self._example = {
            name: torch.zeros(size, dtype=torch.float64, device=total.device)
            for name, total in self.square.items()
        }

    def matrix(self, name: str, d: Tensor, x: Tensor, transposed: bool) -> None:
        """Add the squares of `d[n].T @ x[n]`, or of its transpose; d (B, P, out), x (B, P, in)."""
        total, traces = self.square[name], self._example[name]
        left, right = (x, d) if transposed else (d, x)
        if left.dtype == torch.float16:
            left, right = left.float(), right.float()
        cross = self._crosses.get(name)
        if left.shape[1] == 1 and cross is None:
            left, right = (side[:, 0].to(total.dtype).square() for side in (left, right))
            total.addmm_(left.T, right)
            traces += left.sum(1).double() * right.sum(1).double()
            return
        size, rows, columns = left.shape[0], left.shape[2], right.shape[2]
        step = min(rows, max(1, _block(total) // columns))
        borders = None if cross is None else cross.borders(step)
        product = self._buffer(left, step * columns)
        squared = product if product.dtype == total.dtype else self._buffer(total, step * columns)
        dots = []
        sides = [(side.T, other) for side, other in zip(left, right, strict=True)]
        for index, part in enumerate(torch.split(total, step)):
            start, stop = index * step, index * step + len(part)
            block = product[: part.numel()].view_as(part)
            flat = squared[: part.numel()]
            gradient = block if squared is product else flat.view_as(part)
            for example, (side, other) in enumerate(sides):
                torch.mm(side[start:stop], other, out=block)
                if gradient is not block:
                    gradient.copy_(block)
                if cross is not None and borders is not None:
                    low, high = borders[example][index : index + 2]
                    cross.take(example, low, high, start, gradient)
                part.addcmul_(gradient, gradient)
                dots.append(torch.dot(flat, flat))
        traces += torch.stack(dots).view(-1, size).double().sum(0)

    def rows(self, name: str, ids: Tensor, gradient: Tensor, padding_idx: int | None) -> None:
        """Add an embedding's squares; ids (B, P), gradient (B, P, d), for (V, d)."""
        total = self.square[name]
        gradient = gradient.to(total.dtype)
        cross = self._crosses.get(name)
        for example in range(len(ids)):
            if cross is not None:
                cross.add(example, ids[example], gradient[example])
                continue
            reached = seen(ids[example], padding_idx)
            self._sparse(name, example, reached, row_sums(ids[example], reached, gradient[example]))

    def vectors(self, name: str, gradient: Tensor) -> None:
        """Add the squares of whole per-example gradients (B, ...)."""
        total = self.square[name]
        squares = gradient.to(total.dtype).square().reshape(len(gradient), *total.shape)
        total += squares.sum(0)
        self._example[name] += squares.reshape(len(squares), -1).double().sum(1)

    def whole(self, name: str, gradient: Tensor) -> None:
        """Add the squares of one example's gradient, as autograd left it."""
        total, flat = self.square[name].view(-1), gradient.reshape(-1)
        parts = zip(torch.split(total, _CPU_BLOCK), torch.split(flat, _CPU_BLOCK), strict=True)
        for part, block in parts:
            values = block.to(total.dtype)
            part.addcmul_(values, values)
            self._example[name] += torch.dot(values, values).double()

    def end_pass(self) -> None:
        """Square what head and embedding brought together in this backward pass."""
        for name, cross in self._crosses.items():
            for example, (rows, gradient) in enumerate(cross.sums()):
                self._sparse(name, example, rows, gradient)
            cross.clear()

    def end(self, draws: int) -> None:
        """Close a batch; an example's trace is the mean over `draws`, the squares stay a sum."""
        traces = torch.stack([line.cpu() for line in self._example.values()]) / draws
        self.trace += traces.sum(1)
        self.trace_square += traces.square().sum(1)
        self._example, self._crosses = {}, {}

    def _sparse(self, name: str, example: int, rows: Tensor, gradient: Tensor) -> None:
        """Add the squares of `gradient` (U, d) to the distinct `rows` (U,) of a weight."""
        squares = gradient.square()
        self.square[name].index_add_(0, rows, squares)
        self._example[name][example] += squares.double().sum()

    def _buffer(self, like: Tensor, size: int) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._scratch or len(self._scratch[key]) < size:
            self._scratch[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._scratch[key]


def _block(tensor: Tensor) -> int:
    return _CPU_BLOCK if tensor.device.type == "cpu" else _GPU_BLOCK
