"""Where squares of per-example gradients are added up.

A per-example gradient exists only as long as it takes to square it: in one scratch block that all
weights and examples share. Blocks are the outer loop and examples the inner one, so the block of
the running sum stays in the cache while every example adds to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from fisher.squares.convolution import Geometry, kernel_gradients
from fisher.squares.sink import Each, Part
from fisher.squares.traces import Traces
from fisher.tied import CrossTerm, row_sums, seen

_CPU_BLOCK = 2**18
"""Elements of scratch on a CPU: one MiB, a second-level cache. Half was slower, twice no faster."""

_GPU_BLOCK = 2**24
"""On a GPU a block must be large enough to fill the device."""


class Sums:
    """The running sums of squares, and of each tensor's trace, over examples.

    square: name -> sum over examples of the squared gradient, float32 (float64 if the weight is).
    trace, trace_square: (P + 1,) float64, the tensors in the order of `square` and then all of
        them together: sums over examples of the example's summed squares and of that number
        squared.
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
        self.trace = torch.zeros(len(self.square) + 1, dtype=torch.float64)
        self.trace_square = torch.zeros_like(self.trace)
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._example = Traces({}, 0)
        self._crosses: Mapping[str, CrossTerm] = {}

    def begin(
        self,
        size: int,
        crosses: Mapping[str, CrossTerm],
        traces: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Start a batch of `size` examples; `crosses` are its weights that are used twice.

        traces: what `traces` gave elsewhere, to go on from.
        """
        self._crosses = crosses
        self._example = Traces(self.square, size)
        for name, begun in (traces or {}).items():
            self._example[name].add_(begun)

    def traces(self, name: str) -> Tensor:
        """(B,) float64, the examples' summed squares of one weight in the batch so far."""
        return self._example[name]

    def matrix(self, name: str, d: Each, x: Each, transposed: bool, part: Part = None) -> None:
        """Add the squares of `d[n].T @ x[n]`, or of its transpose; d[n] (P, out), x[n] (P, in)."""
        total = self.square[name] if part is None else self.square[name][part]
        left, right = (x, d) if transposed else (d, x)
        if left[0].dtype == torch.float16:
            left, right = (_each(torch.Tensor.float, side) for side in (left, right))
        cross = self._crosses.get(name) if part is None else None
        lengths = _lengths(left)
        several = [n for n, length in enumerate(lengths) if length > 1 or (cross and length)]
        single = [n for n, length in enumerate(lengths) if length == 1 and cross is None]
        if single:
            self._outer(name, total, single, left, right)
        if several:
            self._products(name, total, several, left, right, cross)

    def _outer(
        self, name: str, total: Tensor, examples: Sequence[int], left: Each, right: Each
    ) -> None:
        """The same where each of the examples has one row: squares of outer products."""
        rows = [_all_rows(side, examples).to(total.dtype).square() for side in (left, right)]
        total.addmm_(rows[0].T, rows[1])
        added = rows[0].sum(1).double() * rows[1].sum(1).double()
        self._example[name].index_add_(0, torch.tensor(examples, device=total.device), added)

    def _products(
        self,
        name: str,
        total: Tensor,
        examples: Sequence[int],
        left: Each,
        right: Each,
        cross: CrossTerm | None,
    ) -> None:
        """Add the squares of `left[n].T @ right[n]` for each of the examples n.

        Blocks are the outer loop and examples the inner one, so the block of the running sum stays
        in the cache while every example adds to it. What is done once per block and example is
        written out: with short rows, calls cost as much as sums.
        """
        rows, columns = total.shape
        step = min(rows, max(1, _block(total) // columns))
        borders = None if cross is None else cross.borders(step)
        others = [right[n] for n in examples] if len(examples) < len(right) else list(right)
        product = self._buffer(others[0], step * columns)
        squared = product if product.dtype == total.dtype else self._buffer(total, step * columns)
        dots = []
        for index, part in enumerate(torch.split(total, step)):
            start = index * step
            block = product[: part.numel()].view_as(part)
            flat = squared[: part.numel()]
            gradient = block if squared is product else flat.view_as(part)
            sides = _columns(left, examples, start, start + len(part))
            for example, side, other in zip(examples, sides, others, strict=True):
                torch.mm(side, other, out=block)
                if gradient is not block:
                    gradient.copy_(block)
                if cross is not None and borders is not None:
                    low, high = borders[example][index : index + 2]
                    cross.take(example, low, high, start, gradient)
                part.addcmul_(gradient, gradient)
                dots.append(torch.dot(flat, flat))
        self._example.later(name, examples, dots)

    def rows(self, name: str, ids: Each, gradient: Each, padding_idx: int | None) -> None:
        """Add an embedding's squares; ids[n] (P,), gradient[n] (P, d), for (V, d)."""
        total, traces = self.square[name], self._example[name]
        if (cross := self._crosses.get(name)) is not None:
            for example, (line, own) in enumerate(zip(ids, gradient, strict=True)):
                cross.add(example, line, own.to(total.dtype))
            return
        owners = torch.arange(len(ids), device=total.device)
        owners = owners.repeat_interleave(torch.tensor(_lengths(ids), device=total.device))
        keys = owners * len(total) + _together(ids)
        if padding_idx is not None:
            keys = keys.where(keys % len(total) != padding_idx, -1)
        reached = seen(keys, -1)
        values = _together(gradient).to(total.dtype)
        squares = row_sums(keys, reached, values).square_()
        # index_put adds in a fixed order on every device
        total.index_put_((reached % len(total),), squares, accumulate=True)
        added = squares.sum(1, dtype=torch.float64)
        traces.index_put_((reached // len(total),), added, accumulate=True)

    def kernel(self, name: str, d: Tensor, x: Tensor, geometry: Geometry) -> None:
        """Add the squares of a convolution's gradients, d (B, out, ...) and x (B, in, ...)."""
        total, traces = self.square[name], self._example[name]
        for run, gradient in kernel_gradients(d, x, geometry):
            squares = gradient.to(total.dtype).square_()
            total += squares.sum(0)
            traces[run] += squares.flatten(1).sum(1, dtype=torch.float64)

    def vectors(self, name: str, gradient: Tensor, part: Part = None) -> None:
        """Add the squares of whole per-example gradients (B, ...)."""
        total = self.square[name] if part is None else self.square[name][part]
        squares = gradient.to(total.dtype).square().reshape(len(gradient), *total.shape)
        total += squares.sum(0)
        self._example[name].add_(squares.reshape(len(squares), -1).sum(1, dtype=torch.float64))

    def whole(self, name: str, gradient: Tensor) -> None:
        """Add the squares of one example's gradient, as autograd left it."""
        total, flat = self.square[name].view(-1), gradient.reshape(-1)
        parts = zip(torch.split(total, _CPU_BLOCK), torch.split(flat, _CPU_BLOCK), strict=True)
        for part, block in parts:
            values = block.to(total.dtype)
            part.addcmul_(values, values)
            self._example.later(name, (0,), (torch.dot(values, values),))

    def end_pass(self) -> None:
        """Square what head and embedding brought together in this backward pass."""
        for name, cross in self._crosses.items():
            for example, (rows, gradient) in enumerate(cross.sums()):
                self._sparse(name, example, rows, gradient)
            cross.clear()

    def end(self, draws: int) -> None:
        """Close a batch; an example's trace is the mean over `draws`, the squares stay a sum."""
        lines = self._example.lines()
        if not lines:
            return  # a layer of which nothing counts
        tensors = torch.stack(list(lines.values())) / draws
        traces = torch.cat([tensors, tensors.sum(0, keepdim=True)])
        self.trace += traces.sum(1)
        self.trace_square += traces.square().sum(1)
        self._example, self._crosses = Traces({}, 0), {}

    def example_traces(self, draws: int, leaving_out: Collection[str] = ()) -> list[float]:
        """Of each example in the batch, the summed squares of all weights but some, mean of draws.

        To be asked before `end`.
        """
        known = self._example.lines()
        lines = [line for name, line in known.items() if name not in leaving_out]
        found: list[float] = (torch.stack(lines).sum(0) / draws).tolist() if lines else []
        return found

    def errors(self, examples: int) -> list[float | None]:
        """Standard errors of each tensor's mean trace over examples, and last of the whole.

        s / sqrt(N), s^2 the unbiased variance over examples: what labels drawn and rows chosen
        anew would change. None for fewer than two examples.
        """
        return standard_errors(self.trace, self.trace_square, examples)

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


def standard_errors(total: Tensor, squares: Tensor, examples: int) -> list[float | None]:
    """Of means over examples, from sums and sums of squares over them; None for fewer than two."""
    if examples < 2:
        return [None] * len(total)
    mean = total / examples
    variance = (squares / examples - mean.square()).clamp(min=0) * examples / (examples - 1)
    errors: list[float | None] = (variance / examples).sqrt().tolist()
    return errors


def _block(tensor: Tensor) -> int:
    return _CPU_BLOCK if tensor.device.type == "cpu" else _GPU_BLOCK


def _lengths(side: Each) -> list[int]:
    """How many rows each example has."""
    return [side.shape[1]] * len(side) if isinstance(side, Tensor) else [len(own) for own in side]


def _each(change: Callable[[Tensor], Tensor], side: Each) -> Each:
    """The same done to every example's rows."""
    return change(side) if isinstance(side, Tensor) else [change(own) for own in side]


def _columns(side: Each, examples: Sequence[int], start: int, stop: int) -> Sequence[Tensor]:
    """Some of the columns of the examples' rows, each transposed: (stop - start, P)."""
    if isinstance(side, Tensor) and len(examples) == len(side):
        return side.transpose(1, 2)[:, start:stop].unbind()
    return [side[n].T[start:stop] for n in examples]


def _together(side: Each) -> Tensor:
    """All examples' rows, one after another."""
    return side.flatten(0, 1) if isinstance(side, Tensor) else torch.cat(list(side))


def _all_rows(side: Each, examples: Sequence[int]) -> Tensor:
    """The one row of each of the examples: (examples, features)."""
    if isinstance(side, Tensor):
        return side[:, 0]
    return torch.cat([side[n] for n in examples])
