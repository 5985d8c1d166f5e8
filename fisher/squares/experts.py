"""The layers of mixtures of experts, whose weights are kept as one tensor for all experts.

Like `layers`: what torch would compute, with the gradient of each example and expert handed to the
sink. An expert that no row was routed to is left alone, its square stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.squares.sink import Use, split


class Grouped(torch.autograd.Function):
    """`x[rows of e] @ weight[e]` for each expert e, rows being sorted by expert."""

    @staticmethod
    def forward(
        ctx: Any,
        call: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor,
        ends: Tensor,
        anchor: Tensor,
        use: Use,
    ) -> Tensor:
        """call: torch's grouped product. x: (S, in). weight: (E, in, out). ends: (E,) of rows."""
        ctx.save_for_backward(x, weight, ends)
        ctx.call, ctx.use = call, use
        return call(x, weight, offs=ends)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """d: (S, out). Rows past the last end belong to no expert."""
        use: Use = ctx.use
        x, weight, ends = ctx.saved_tensors
        d = d.contiguous()
        assert use.weight is not None
        assert use.owners is not None
        start = 0
        for expert, end in enumerate(ends.tolist()):
            if end > start:
                owners = use.owners[start:end]
                left, right = (split(side[start:end], owners, use.size) for side in (d, x))
                use.sink.matrix(use.weight, left, right, use.transposed, expert)
            start = end
        back = ctx.call(d, weight.transpose(1, 2), offs=ends) if ctx.needs_input_grad[1] else None
        return None, back, None, None, None, None


class Batched(torch.autograd.Function):
    """`x[e] @ weight[e]` where every expert sees every row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, anchor: Tensor, use: Use) -> Tensor:
        """x: (E, B*P, in). weight: (E, in, out)."""
        ctx.save_for_backward(x, weight)
        ctx.use = use
        return torch.bmm(x, weight)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """d: (E, B*P, out)."""
        use: Use = ctx.use
        x, weight = ctx.saved_tensors
        assert use.weight is not None
        for expert, (left, right) in enumerate(zip(d, x, strict=True)):
            pair = (use.examples(left), use.examples(right))
            use.sink.matrix(use.weight, *pair, use.transposed, expert)
        back = torch.bmm(d, weight.transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return back, None, None, None


class RowShift(torch.autograd.Function):
    """`x + bias[ids]`: each row with its expert's bias, or each position with its own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, chosen: Tensor, ids: Tensor, anchor: Tensor, use: Use
    ) -> Tensor:
        """x: (..., d). chosen: `bias[ids]`. ids: (rows of x,)."""
        ctx.save_for_backward(ids)
        ctx.dtype, ctx.use = x.dtype, use
        return x + chosen

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """d: like x."""
        use: Use = ctx.use
        (ids,) = ctx.saved_tensors
        assert use.bias is not None
        places = [line[..., 0] for line in use.examples(ids.unsqueeze(-1))]
        use.sink.rows(use.bias, places, use.examples(d), None)
        return d.to(ctx.dtype) if ctx.needs_input_grad[0] else None, None, None, None, None
