"""Exponential moving average of one block.

    state <- d * state + (1 - d) * online

Source: Polyak and Juditsky 1992; the warm-up is that of Karras et al. 2024's baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_cl.merge.kernel import Merged
from mergekit_cl.merge.linear import weighted_mean

if TYPE_CHECKING:
    import torch


def ema_update(
    operands: Sequence[torch.Tensor], scratch: Sequence[torch.Tensor], *, decays: Sequence[float]
) -> Merged:
    """The state after one update per online input, in their order.

    operands: the state, then one input per decay. Each step is the two-input mean of
    merge/linear.py, so that several updates at once equal as many single ones to the bit.
    """
    first, second, working = scratch[0], scratch[1], scratch[2:]
    state = operands[0]
    for online, decay in zip(operands[1:], decays, strict=True):
        step = weighted_mean([state, online], working, weights=(decay, 1.0 - decay))
        first.copy_(step.exact)
        state, first, second = first, second, first
    return Merged(state)


def decay_of_half_life(half_life: float) -> float:
    """d = 2^(-1/h): after h updates half of the old state is left."""
    decay: float = 2.0 ** (-1.0 / half_life)
    return decay


def decays(decay: float, count: int, *, warmup: bool, updates: int) -> tuple[float, ...]:
    """The decay of each of `count` updates after `updates` earlier ones.

    With warm-up d_t = min(d, (1 + t) / (10 + t)): early updates forget the random start sooner.
    """
    if not warmup:
        return (decay,) * count
    return tuple(min(decay, (1 + t) / (10 + t)) for t in range(updates, updates + count))
