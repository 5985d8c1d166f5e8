"""The few operations by which parameters enter a model, each with its per-example gradient.

Every function computes what torch would compute, with the parameter detached, and in its backward
pass hands the parameter's gradient of each example to a `Sink` instead of adding them up. The
`anchor` is a leaf that requires a gradient, so that a result does too where its input does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fisher.squares.convolution import Geometry, input_gradient
from fisher.squares.sink import Use, wide


class Affine(torch.autograd.Function):
    """`x @ weight.T + bias`, weight (out, in); `use.transposed` if it is stored as (in, out)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, use: Use
    ) -> Tensor:
        """x: (..., in)."""
        ctx.save_for_backward(x, weight)
        ctx.use = use
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """d: (..., out)."""
        use: Use = ctx.use
        x, weight = ctx.saved_tensors
        if use.weight is not None:
            use.sink.matrix(use.weight, use.examples(d), use.examples(x), use.transposed, use.part)
        if use.bias is not None:
            use.sink.vectors(use.bias, use.summed(d, d.shape[-1:]), use.bias_part)
        return d.matmul(weight) if ctx.needs_input_grad[0] else None, None, None, None, None


class Lookup(torch.autograd.Function):
    """`weight[ids]`."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, anchor: Tensor, use: Use) -> Tensor:
        """ids: (B, ...). weight: (V, d)."""
        ctx.save_for_backward(ids)
        ctx.use = use
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[None, ...]:
        """d: (B, ..., d)."""
        use: Use = ctx.use
        (ids,) = ctx.saved_tensors
        assert use.weight is not None
        use.sink.rows(
            use.weight, ids.reshape(use.size, -1), use.examples(d), padding_idx=use.padding_idx
        )
        return None, None, None, None


class Scale(torch.autograd.Function):
    """`x * weight` where the weight's shape is that of x's last axes: the gain of any norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, anchor: Tensor, use: Use) -> Tensor:
        """x: (B or B*P, ..., *weight.shape)."""
        ctx.save_for_backward(x, weight)
        ctx.use = use
        return x * weight

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """d: like x."""
        use: Use = ctx.use
        x, weight = ctx.saved_tensors
        assert use.weight is not None
        use.sink.vectors(use.weight, use.summed(d.to(wide(d)) * x, weight.shape), use.part)
        return (d * weight).to(x.dtype) if ctx.needs_input_grad[0] else None, None, None, None


class Norm(torch.autograd.Function):
    """The layer norm over x's last axes, with gain and bias or without."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        shape: tuple[int, ...],
        eps: float,
        anchor: Tensor,
        use: Use,
    ) -> Tensor:
        """x: (B or B*P, ..., *shape)."""
        result, mean, inverse = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.shape, ctx.use = torch.Size(shape), use
        return result

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """d: like x."""
        use: Use = ctx.use
        x, weight, bias, mean, inverse = ctx.saved_tensors
        if use.weight is not None:
            normal = (x.to(wide(x)) - mean) * inverse
            gain = use.summed(d.to(wide(d)) * normal, ctx.shape)
            use.sink.vectors(use.weight, gain, use.part)
        if use.bias is not None:
            use.sink.vectors(use.bias, use.summed(d, ctx.shape), use.bias_part)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, None, None
        back: Tensor = torch.ops.aten.native_layer_norm_backward(
            d.contiguous(), x, ctx.shape, mean, inverse, weight, bias, (True, False, False)
        )[0]
        return back, None, None, None, None, None, None


class Shift(torch.autograd.Function):
    """`x + bias` where the bias's shape is that of x's last axes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, anchor: Tensor, use: Use) -> Tensor:
        """x: (B or B*P, ..., *bias.shape)."""
        ctx.shape, ctx.dtype, ctx.use = bias.shape, x.dtype, use
        return x + bias

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """d: like x."""
        use: Use = ctx.use
        assert use.bias is not None
        use.sink.vectors(use.bias, use.summed(d, ctx.shape), use.bias_part)
        return d.to(ctx.dtype) if ctx.needs_input_grad[0] else None, None, None, None


class Convolution(torch.autograd.Function):
    """A convolution over any number of spatial axes."""

    @staticmethod
    def forward(
        ctx: Any,
        call: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        how: Geometry,
        anchor: Tensor,
        use: Use,
    ) -> Tensor:
        """call: the torch function with all but x, weight and bias bound. x: (B, in, ...)."""
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.use = how, use
        result: Tensor = call(x, weight, bias)
        return result

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """d: (B, out, ...)."""
        use: Use = ctx.use
        x, weight = ctx.saved_tensors
        if use.weight is not None:
            use.sink.kernel(use.weight, d, x, ctx.how)
        if use.bias is not None:
            use.sink.vectors(use.bias, d.flatten(2).sum(2, dtype=wide(d)), use.bias_part)
        back = input_gradient(d, x, weight, ctx.how) if ctx.needs_input_grad[1] else None
        return None, back, None, None, None, None, None
