"""The torch functions that have a per-example counterpart.

Each function here takes the `Uses` of a batch and the arguments of the torch function, and answers
with the result, or with `NotImplemented` where the arguments are not of the known form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fisher.squares import norms
from fisher.squares.convolution import geometry
from fisher.squares.experts import Batched, Grouped, RowShift
from fisher.squares.layers import Affine, Convolution, Lookup, Scale, Shift
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
    if any(handle and handle.rows is not None for handle in (w, b)):
        return NotImplemented
    matrix = w.value if w else weight
    transposed = w is not None and w.transposed != stored_in_out
    owners = uses.owners.rows(x, 1)
    use = uses.use(w, b, kind="transposed" if transposed else "matrix", owners=owners)
    result = Affine.apply(  # type: ignore[no-untyped-call]
        x, matrix.t() if stored_in_out else matrix, b.value if b else bias, uses.anchor, use
    )
    return uses.noted(result, owners, 1)


def product(uses: Uses, x: Any, weight: Any) -> Any:
    """`x @ weight`."""
    if weight.dim() == 3 and isinstance(x, Tensor) and x.dim() == 3:
        return batched(uses, x, weight)
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
    if ids.dim() == 1 and handle is not None and not uses.apart(ids, 0):
        plainly = padding_idx is None and max_norm is None
        return pick(uses, weight, ids) if plainly else NotImplemented
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
    owners = uses.owners.rows(x, weight.dim())
    use = uses.use(handle, owners=owners)
    result = Scale.apply(x, weight, uses.anchor, use)  # type: ignore[no-untyped-call]
    return uses.noted(result, owners, weight.dim())


def shift(uses: Uses, a: Any, b: Any) -> Any:
    """`bias + x` or `x + bias`; with a number instead of x, a shifted parameter."""
    for number, parameter in ((a, b), (b, a)):
        handle = uses.handle(parameter)
        if handle is not None and isinstance(number, (int, float)):
            return uses.derived(handle, parameter + number)
    for x, parameter in ((a, b), (b, a)):
        handle = uses.handle(parameter)
        if handle is not None and handle.rows is not None and uses.handle(x) is None:
            return shift_rows(uses, x, handle)
    x, handle = _pair(uses, a, b)
    if handle is None:
        return NotImplemented
    bias = _bare(handle.value)
    owners = uses.owners.rows(x, bias.dim())
    use = uses.use(bias=handle, owners=owners)
    result = Shift.apply(x, bias, uses.anchor, use)  # type: ignore[no-untyped-call]
    return uses.noted(result, owners, bias.dim())


def shift_rows(uses: Uses, x: Any, handle: Handle) -> Any:
    """`x + bias[ids]`, one id for each row of x, or for each position of every example."""
    ids, chosen = handle.rows, handle.value
    assert ids is not None
    if not uses.apart(x, 1) or x.shape[x.dim() - chosen.dim() :] != chosen.shape:
        return NotImplemented
    owners = uses.owners.rows(x, 1)
    if x.dim() > chosen.dim() and owners is not None:
        return NotImplemented
    ids = ids.expand(x.shape[:-1]).reshape(-1)
    use = uses.use(bias=handle, owners=owners)
    result = RowShift.apply(x, chosen, ids, uses.anchor, use)  # type: ignore[no-untyped-call]
    return uses.noted(result, owners, 1)


def pick(uses: Uses, value: Any, index: Any) -> Any:
    """`parameter[index]`: one expert's, a run of positions, or rows by their numbers."""
    handle = uses.handle(value)
    if handle is None or handle.transposed or handle.part is not None or handle.rows is not None:
        return NotImplemented
    if isinstance(index, Tensor):
        if index.is_floating_point() or index.dtype == torch.bool:
            return NotImplemented
        if index.dim() == 2 and value.dim() == 2:
            return lookup(uses, index, value)
        if index.dim() == 1:
            return uses.derived(handle, value[index], rows=index)
        index = int(index) if index.dim() == 0 else None
    if type(index) is int:
        return uses.derived(handle, value[index], part=index % len(value))
    return (
        uses.derived(handle, value[index], part=index) if type(index) is slice else NotImplemented
    )


def repeated(uses: Uses, value: Any, *sizes: Any) -> Any:
    """`parameter.expand(B, ...)`, of a parameter whose first axis is 1."""
    handle = uses.handle(value)
    shape = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    if handle is None or handle.transposed or handle.rows is not None or shape[0] != uses.size:
        return NotImplemented
    result = value.detach().expand(shape)
    bare = _bare(handle.value)
    repeats = len(shape) > value.dim() or value.shape[0] == 1
    if repeats and result.shape[result.dim() - bare.dim() :] == bare.shape:
        use = uses.use(bias=handle)
        zeros = torch.zeros_like(result, memory_format=torch.contiguous_format)
        return Shift.apply(zeros, bare, uses.anchor, use)  # type: ignore[no-untyped-call]
    return NotImplemented


def grouped(uses: Uses, x: Any, weight: Any, *, offs: Any = None, **others: Any) -> Any:
    """Rows sorted by expert, each multiplied with its expert's matrix."""
    handle = uses.handle(weight)
    plain = handle is not None and handle.part is None and handle.rows is None
    if handle is None or not plain or x.dim() != 2 or any(v is not None for v in others.values()):
        return NotImplemented
    if not uses.apart(x, 1):
        return NotImplemented
    owners = uses.owners.each(x)
    use = uses.use(handle, kind="matrix" if handle.transposed else "transposed", owners=owners)
    result = Grouped.apply(  # type: ignore[no-untyped-call]
        torch._grouped_mm, x, handle.value, offs, uses.anchor, use
    )
    return uses.owners.give(result, owners)


def batched(uses: Uses, x: Any, weight: Any) -> Any:
    """All rows for each expert: x (E, B*P, in) and weight (E, in, out)."""
    handle = uses.handle(weight)
    if handle is None or handle.part is not None or handle.rows is not None or x.dim() != 3:
        return NotImplemented
    if not uses.apart(x[0], 1) or uses.owners.rows(x, 1) is not None:
        return NotImplemented
    use = uses.use(handle, kind="matrix" if handle.transposed else "transposed")
    return Batched.apply(x, handle.value, uses.anchor, use)  # type: ignore[no-untyped-call]


def convolution(
    uses: Uses,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    call: Callable[..., Any],
) -> Any:
    """One, two or three spatial axes, one example per leading row."""
    w, b = uses.handle(weight), uses.handle(bias)
    known = (w or _constant(weight)) and (b or _constant(bias)) and uses.handle(input) is None
    if not known or input.dim() != weight.dim() or input.shape[0] != uses.size:
        return NotImplemented
    if any(handle and (handle.transposed or handle.rows is not None) for handle in (w, b)):
        return NotImplemented
    if uses.owners.rows(input, 1) is not None or (w and w.part is not None):
        return NotImplemented
    kernel = w.value if w else weight
    how = geometry(kernel, stride, padding, dilation, groups)
    bound = partial(call, stride=stride, padding=padding, dilation=dilation, groups=groups)
    use = uses.use(w, b, kind="kernel")
    return Convolution.apply(  # type: ignore[no-untyped-call]
        bound, input, kernel, b.value if b else bias, how, uses.anchor, use
    )


def shift_in_place(uses: Uses, x: Any, value: Any) -> Any:
    """`x.add_(bias)`: the sum as a new tensor, written back so that x is it too."""
    result = NotImplemented if uses.handle(x) is not None else shift(uses, x, value)
    if result is NotImplemented:
        return result
    with uses:
        return x.copy_(result)


def cast(uses: Uses, value: Any, *args: Any, **kwargs: Any) -> Any:
    """A parameter in another dtype or on another device."""
    handle = uses.handle(value)
    return NotImplemented if handle is None else uses.derived(handle, value.to(*args, **kwargs))


def to_float(uses: Uses, value: Any) -> Any:
    """`parameter.float()`."""
    return cast(uses, value, torch.float32)


def retype(uses: Uses, value: Any, dtype: Any = None) -> Any:
    """`parameter.type(dtype)`."""
    return cast(uses, value, dtype) if isinstance(dtype, torch.dtype) else NotImplemented


def transpose(uses: Uses, value: Any, *axes: Any) -> Any:
    """`.T`, `.mT`, `.t()` or `.transpose` of a parameter that is a matrix, or one per expert."""
    handle = uses.handle(value)
    if handle is None or value.dim() not in (2, 3) or (value.dim() == 3 and not axes):
        return NotImplemented
    last = [value.dim() - 2, value.dim() - 1]
    if sorted(axis % value.dim() for axis in axes) not in ([], last):
        return NotImplemented
    return uses.derived(handle, value.transpose(-2, -1), flipped=True)


OPERATIONS: Mapping[Any, Callable[..., Any]] = {
    F.linear: affine,
    torch.addmm: sum_product,
    torch.matmul: product,
    torch.mm: product,
    torch.Tensor.matmul: product,
    torch.Tensor.mm: product,
    F.embedding: lookup,
    torch.bmm: batched,
    torch.Tensor.bmm: batched,
    F.grouped_mm: grouped,
    torch._grouped_mm: grouped,
    F.conv1d: partial(convolution, call=F.conv1d),
    F.conv2d: partial(convolution, call=F.conv2d),
    F.conv3d: partial(convolution, call=F.conv3d),
    F.layer_norm: norms.layer_norm,
    F.batch_norm: norms.batch_norm,
    F.group_norm: norms.group_norm,
    F.rms_norm: norms.rms_norm,
    torch.mul: scale,
    torch.Tensor.mul: scale,
    torch.add: shift,
    torch.Tensor.add: shift,
    torch.Tensor.add_: shift_in_place,
    torch.Tensor.expand: repeated,
    torch.Tensor.__getitem__: pick,
    torch.Tensor.to: cast,
    torch.Tensor.float: to_float,
    torch.Tensor.type: retype,
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
        if handle is None or handle.transposed or handle.rows is not None:
            continue
        if uses.handle(x) is not None:
            continue
        shape = _bare(handle.value).shape
        if uses.apart(x, len(shape)) and x.shape[x.dim() - len(shape) :] == shape:
            return x, handle
    return None, None
