"""Arithmetic in fractions: the nearest value of a floating dtype to an exact number."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch


class Format(NamedTuple):
    """significand bits (with the hidden one), least normal exponent, largest finite value."""

    precision: int
    least_exponent: int
    largest: float


FORMATS = {
    torch.bfloat16: Format(8, -126, torch.finfo(torch.bfloat16).max),
    torch.float16: Format(11, -14, torch.finfo(torch.float16).max),
    torch.float32: Format(24, -126, torch.finfo(torch.float32).max),
    torch.float64: Format(53, -1022, torch.finfo(torch.float64).max),
}


def spacing(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The distance between neighbours of `dtype` at a value's scale (one unit in last place)."""
    form = FORMATS[dtype]
    exponent = form.least_exponent
    if value:
        size = abs(value)
        exponent = size.numerator.bit_length() - size.denominator.bit_length()
        if Fraction(2) ** exponent > size:
            exponent -= 1
    return Fraction(2) ** (max(exponent, form.least_exponent) - form.precision + 1)


def nearest(value: Fraction, dtype: torch.dtype) -> float:
    """The value of `dtype` nearest to an exact one, ties to even, overflowing to infinity."""
    unit = spacing(value, dtype)
    rounded = round(value / unit) * unit  # Python rounds fractions half to even
    if abs(rounded) > Fraction(FORMATS[dtype].largest):
        return math.inf if rounded > 0 else -math.inf
    return float(rounded)


def fractions(values: torch.Tensor) -> list[Fraction]:
    """The exact values of a tensor of finite floats."""
    return [Fraction(value) for value in values.double().tolist()]


def nearest_all(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`nearest` of finite float64 values, as float64: rounded to whole units of the last place."""
    form = FORMATS[dtype]
    _, exponents = np.frexp(values.double().numpy())
    units = np.maximum(exponents - 1, form.least_exponent) - form.precision + 1
    found = np.ldexp(np.rint(np.ldexp(values.double().numpy(), -units)), units)
    return torch.from_numpy(
        np.where(np.abs(found) > form.largest, np.copysign(np.inf, found), found)
    )
