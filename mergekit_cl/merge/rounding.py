"""The one rounding at the end of a merge."""

from __future__ import annotations

import torch

from mergekit_cl.merge.kernel import can_be_asked

BELOW_A_TIE = 0xFFF
"""Bits of a float32 that are zero in every value halfway between two of bfloat16 or float16."""


def round_into(out: torch.Tensor, exact: torch.Tensor) -> None:
    """Round `exact` to the dtype of `out`, once, to nearest even.

    torch rounds float64 to a 16-bit type through float32, which is wrong next to a tie:
    1 + 2^-8 + 2^-40 becomes 1.0 in bfloat16. Rounding to odd into float32 first keeps the
    sticky bit (Boldo and Melquiond 2008), so the second rounding is the only one.
    """
    if exact.dtype == torch.float64 and out.dtype in (torch.bfloat16, torch.float16):
        if not can_be_asked(exact):
            out.copy_(round_to_odd(exact))
            return
        nearest = exact.to(torch.float32)
        out.copy_(nearest)
        # Rounding twice is wrong only where the first result is a tie of the second: few are.
        below = nearest.view(torch.int32).bitwise_and_(BELOW_A_TIE)
        doubtful = below.eq(0).nonzero().flatten()
        if len(doubtful):
            out[doubtful] = round_to_odd(exact[doubtful]).to(out.dtype)
    else:
        out.copy_(exact)


def round_to_odd(exact: torch.Tensor) -> torch.Tensor:
    """float64 to float32: exact values stay, others go to the neighbour with an odd last bit."""
    nearest = exact.to(torch.float32)
    back = nearest.to(torch.float64)
    inexact = torch.ne(back, exact).to(torch.int32)
    away = torch.gt(back.abs_(), exact.abs()).to(torch.int32)
    # Truncate towards zero (also from an overflow to infinity), then set the last bit. A NaN is
    # never greater, and stays a NaN with its last bit set.
    bits = nearest.view(torch.int32)
    return bits.sub_(away).bitwise_or_(inexact).view(torch.float32)
