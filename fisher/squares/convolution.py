"""A convolution's gradient of each example, as matrix products with the patches its kernel saw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_CPU_SCRATCH = 2**22
_GPU_SCRATCH = 2**26
"""Elements of patches and of gradients alive at a time, or those of one example if more."""


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves: per spatial axis its size, stride, (before, after) padding, dilation."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


def geometry(
    weight: Tensor,
    stride: int | tuple[int, ...],
    padding: int | str | tuple[int, ...],
    dilation: int | tuple[int, ...],
    groups: int,
) -> Geometry:
    """From a torch convolution's arguments; padding "same" leaves the odd one at the end."""
    kernel = tuple(weight.shape[2:])
    spread = _each(dilation, len(kernel))
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
        sides = tuple((total // 2, total - total // 2) for total in whole)
    else:
        pads = (0,) * len(kernel) if isinstance(padding, str) else _each(padding, len(kernel))
        sides = tuple((pad, pad) for pad in pads)
    return Geometry(kernel, _each(stride, len(kernel)), sides, spread, groups)


def kernel_gradients(d: Tensor, x: Tensor, how: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """Runs of examples n with their gradients (n, out, in / groups, *kernel).

    d: (B, out, *positions) at the result. x: (B, in, *positions) the input. Bounded scratch: as
    many examples at a time as fit.
    """
    size, groups, taps = len(x), how.groups, math.prod(how.kernel)
    outputs, inputs, places = d.shape[1], x.shape[1], math.prod(d.shape[2:])
    each = max(inputs * taps * places, outputs * inputs // groups * taps)
    step = max(1, (_CPU_SCRATCH if x.device.type == "cpu" else _GPU_SCRATCH) // max(1, each))
    for start in range(0, size, step):
        run = slice(start, min(size, start + step))
        patches = _patches(x[run], how).view(-1, groups, places, inputs // groups * taps)
        sides = d[run].reshape(-1, groups, outputs // groups, places)
        yield run, (sides @ patches).view(-1, outputs, inputs // groups, *how.kernel)


def _patches(x: Tensor, how: Geometry) -> Tensor:
    """(n, groups, places, in / groups * taps): what each place of the result has seen."""
    axes = len(how.kernel)
    seen = F.pad(x, [pad for sides in reversed(how.padding) for pad in sides])
    for axis in range(axes):
        span = how.dilation[axis] * (how.kernel[axis] - 1) + 1
        seen = seen.unfold(2 + axis, span, how.stride[axis])[..., :: how.dilation[axis]]
    seen = seen.reshape(
        len(x), how.groups, -1, *seen.shape[2:]
    )  # n, groups, in / groups, *places, *kernel
    places, taps = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    flat = seen.permute(0, 1, *places, 2, *taps)
    found: Tensor = flat.reshape(len(x), how.groups, math.prod(flat.shape[2 : 2 + axes]), -1)
    return found


def input_gradient(d: Tensor, x: Tensor, weight: Tensor, how: Geometry) -> Tensor:
    """The gradient at the input (B, in, *positions)."""
    padded = F.pad(x, [pad for sides in reversed(how.padding) for pad in sides])
    found: Tensor = torch.ops.aten.convolution_backward(
        d,
        padded,
        weight,
        None,
        how.stride,
        (0,) * len(how.kernel),
        how.dilation,
        False,
        (0,) * len(how.kernel),
        how.groups,
        (True, False, False),
    )[0]
    for axis, (before, after) in enumerate(how.padding, start=2):
        found = found.narrow(axis, before, found.shape[axis] - before - after)
    return found


def _each(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values
