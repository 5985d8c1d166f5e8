"""Norms, by the torch functions that compute them: each row's own numbers, then a gain and a bias.

Norms spelled out by hand need nothing here: their gain is a product, their bias a sum.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fisher.squares.layers import Norm
from fisher.squares.uses import Uses


def layer_norm(
    uses: Uses,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """One function for all of it, which rounds once where 16-bit numbers would round thrice."""
    w, b = uses.handle(weight), uses.handle(bias)
    known = (w or weight is None) and (b or bias is None)
    shape = tuple(normalized_shape)
    if not known or not uses.apart(input, len(shape)) or uses.handle(input) is not None:
        with uses:
            normal = F.layer_norm(input, normalized_shape, None, None, eps)
            scaled = normal if weight is None else normal * weight
            return scaled if bias is None else scaled + bias
    owners = uses.owners.rows(input, len(shape))
    use = uses.use(w, b, owners=owners)
    result = Norm.apply(  # type: ignore[no-untyped-call]
        input, w and w.value, b and b.value, shape, eps, uses.anchor, use
    )
    return uses.noted(result, owners, len(shape))


def rms_norm(
    uses: Uses,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    eps: float | None = None,
) -> Any:
    """The same for torch's own RMS norm."""
    with uses:
        return F.rms_norm(input, normalized_shape, None, eps) * weight


def batch_norm(
    uses: Uses,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """By stored statistics, then gain and bias of each channel."""
    if training:
        return NotImplemented
    with uses:
        normal = F.batch_norm(input, running_mean, running_var, None, None, False, momentum, eps)
        return _by_channel(normal, weight, bias)


def group_norm(
    uses: Uses,
    input: Tensor,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: Any = 1e-5,
) -> Any:
    """The norm without its parameters, then gain and bias of each channel."""
    with uses:
        return _by_channel(F.group_norm(input, num_groups, None, None, eps), weight, bias)


def _by_channel(normal: Tensor, weight: Any, bias: Any) -> Tensor:
    """Gain and bias for the second axis."""
    last = normal.movedim(1, -1)
    scaled = last if weight is None else last * weight
    return (scaled if bias is None else scaled + bias).movedim(-1, 1)
