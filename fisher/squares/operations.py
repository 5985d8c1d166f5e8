"""The torch functions that have a per-example counterpart.

Each function here takes the `Uses` of a batch and the arguments of the torch function, and answers
with the result, or with `NotImplemented` where the arguments are not of the known form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fisher.squares.layers import Affine, Lookup, Scale, Shift
from fisher.squares.uses import Handle, Uses


def affine(
    uses: Uses, x: Any, weight: Any, bias: Any = None, *, stored_in_out: bool = False
) -> Any:
    """`x @ weight.T + bias`; stored_in_out: the caller means `x @ weight + bias`."""
    w, b = uses.handle(weight), uses.handle(bias)
    shaped = weight.dim() == 2 and (bias is None or bias.dim() == 1)
    if not shaped or not uses.apart(x, 1) or uses.handle(x) is not None:
        return NotImplemented
    if not (w or _constant(weight)) or not (b or _constant(bias)):
        return NotImplemented
    matrix = w.value if w else weight
    transposed = w is not None and w.transposed != stored_in_out
    use = uses.use(w, b, kind="transposed" if transposed else "matrix")
    return Affine.apply(  # type: ignore[no-untyped-call]
        x, matrix.t() if stored_in_out else matrix, b.value if b else bias, uses.anchor, use
    )


def product(uses: Uses, x: Any, weight: Any) -> Any:
    """`x @ weight`."""
    return affine(uses, x, weight, stored_in_out=True) if weight.dim() == 2 else NotImplemented


def sum_product(uses: Uses, bias: Any, x: Any, weight: Any) -> Any:
    """`bias + x @ weight`."""
    return affine(uses, x, weight, bias, stored_in_out=True)


def lookup(
    uses: Uses,
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """An embedding; ids given once for all rows are repeated, so that rows stay apart."""
    handle, ids = uses.handle(weight), input
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids.expand(uses.size, -1)
    plain = max_norm is None and not scale_grad_by_freq
    if handle is None or handle.transposed or not plain or not uses.apart(ids, 0):
        return NotImplemented
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    use = uses.looked_up(handle, ids, padding_idx)
    return Lookup.apply(ids, handle.value, uses.anchor, use)  # type: ignore[no-untyped-call]


def scale(uses: Uses, a: Any, b: Any) -> Any:
    """`weight * x` or `x * weight`."""
    x, handle = _pair(uses, a, b)
    if handle is None:
        return NotImplemented
    weight = _bare(handle.value)
    return Scale.apply(x, weight, uses.anchor, uses.use(handle))  # type: ignore[no-untyped-call]


def shift(uses: Uses, a: Any, b: Any) -> Any:
    """`bias + x` or `x + bias`; with a number instead of x, a shifted parameter."""
    for number, parameter in ((a, b), (b, a)):
        handle = uses.handle(parameter)
        if handle is not None and isinstance(number, (int, float)):
            return uses.derived(handle, parameter + number)
    x, handle = _pair(uses, a, b)
    if handle is None:
        return NotImplemented
    bias = _bare(handle.value)
    return Shift.apply(x, bias, uses.anchor, uses.use(bias=handle))  # type: ignore[no-untyped-call]


def layer_norm(
    uses: Uses,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """The norm without its parameters, then gain and bias as the operations they are."""
    with uses:
        normal = F.layer_norm(input, normalized_shape, None, None, eps)
        scaled = normal if weight is None else normal * weight
        return scaled if bias is None else scaled + bias


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


def cast(uses: Uses, value: Any, *args: Any, **kwargs: Any) -> Any:
    """A parameter in another dtype or on another device."""
    handle = uses.handle(value)
    return NotImplemented if handle is None else uses.derived(handle, value.to(*args, **kwargs))


def to_float(uses: Uses, value: Any) -> Any:
    """`parameter.float()`."""
    return cast(uses, value, torch.float32)


def transpose(uses: Uses, value: Any, *axes: Any) -> Any:
    """`.T`, `.mT`, `.t()` or `.transpose(0, 1)` of a parameter that is a matrix."""
    handle = uses.handle(value)
    if handle is None or value.dim() != 2 or sorted(axis % 2 for axis in axes) not in ([], [0, 1]):
        return NotImplemented
    return uses.derived(handle, value.t(), flipped=True)


OPERATIONS: Mapping[Any, Callable[..., Any]] = {
    F.linear: affine,
    torch.addmm: sum_product,
    torch.matmul: product,
    torch.mm: product,
    torch.Tensor.matmul: product,
    torch.Tensor.mm: product,
    F.embedding: lookup,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    torch.mul: scale,
    torch.Tensor.mul: scale,
    torch.add: shift,
    torch.Tensor.add: shift,
    torch.Tensor.to: cast,
    torch.Tensor.float: to_float,
    torch.t: transpose,
    torch.transpose: transpose,
    torch.Tensor.t: transpose,
    torch.Tensor.transpose: transpose,
    torch.Tensor.T.__get__: transpose,  # type: ignore[attr-defined]
    torch.Tensor.mT.__get__: transpose,  # type: ignore[attr-defined]
}


def _constant(value: Any) -> bool:
    """Whether no gradient flows into `value`."""
    return value is None or (isinstance(value, Tensor) and not value.requires_grad)


def _bare(weight: Tensor) -> Tensor:
    """Without leading axes of length 1: they only broadcast."""
    while weight.dim() > 1 and weight.shape[0] == 1:
        weight = weight[0]
    return weight


def _pair(uses: Uses, a: Any, b: Any) -> tuple[Any, Handle | None]:
    """(x, parameter) if one of the two is a parameter shaped like the other's last axes."""
    for x, parameter in ((a, b), (b, a)):
        handle = uses.handle(parameter)
        if handle is None or handle.transposed or uses.handle(x) is not None:
            continue
        shape = _bare(handle.value).shape
        if uses.apart(x, len(shape)) and x.shape[x.dim() - len(shape) :] == shape:
            return x, handle
    return None, None
