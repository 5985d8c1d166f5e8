"""Fisher-weighted averages of one block.

    theta = sum_k c_k F~_k theta_k / sum_k c_k F~_k,   F~_k = max(F_k, eps m_k) / s_k

Source: Matena and Raffel 2022, eq. 4; the scale s_k and the relative floor are docs/mathematics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mergekit_cl.merge.kernel import Merged, can_be_asked

if TYPE_CHECKING:
    import torch

Fallback = Literal["linear", "base", "first"]


@dataclass(frozen=True)
class Scale:
    """One input's numbers for one tensor.

    weight: c_k. factor: c_k / s_k. floor: eps * m_k, in the units of the stored Fisher.
    """

    weight: float
    factor: float
    floor: float


def fisher_weighted(
    operands: Sequence[torch.Tensor],
    scratch: Sequence[torch.Tensor],
    *,
    scales: Sequence[Scale],
    fallback: Fallback,
) -> Merged:
    """The Fisher-weighted mean of K inputs.

    operands: K weights, then K raw Fishers (non-negative), then the base if `fallback` is "base".
    An input of weight 0 takes no part. Folds one input after another into a running mean with the
    running sum of its Fishers, which is the same average:

        t = g_k / (G + g_k)
        mean <- mean + t (x_k - mean) where t < 1/2, else x_k - (1 - t)(x_k - mean)

    so that equal inputs keep their bits and the result stays between the inputs. Where every raw
    Fisher is exactly 0 the fallback decides; its entries are counted.
    """
    import torch

    count = len(scales)
    taking_part = [k for k in range(count) if scales[k].weight > 0]
    fishers = operands[count : 2 * count]
    mean, total, gain, other, grown = scratch[:5]

    other.copy_(fishers[taking_part[0]])
    for k in taking_part[1:]:
        other.add_(fishers[k])
    undecided = other == 0
    fallbacks: int | torch.Tensor = undecided.count_nonzero()
    perhaps = True
    if can_be_asked(undecided):
        fallbacks = int(fallbacks)
        perhaps = fallbacks > 0

    def weigh(k: int, into: torch.Tensor) -> None:
        torch.clamp(fishers[k], min=scales[k].floor, out=into)
        into.mul_(scales[k].factor)
        if perhaps:
            into.masked_fill_(undecided, scales[k].weight)

    # Without a floor, none of the first inputs may have measured an entry.
    nobody_yet_is_possible = any(scale.floor == 0 for scale in scales)
    weigh(taking_part[0], total)
    mean.copy_(operands[taking_part[0]])
    for k in taking_part[1:]:
        x = operands[k]
        weigh(k, gain)
        torch.add(total, gain, out=grown)
        if nobody_yet_is_possible:
            nobody = grown == 0
            gain.masked_fill_(nobody, 0.0)
            grown.masked_fill_(nobody, 1.0)
        gain.div_(grown)
        total.div_(grown)
        if nobody_yet_is_possible:
            grown.masked_fill_(nobody, 0.0)
        mean_is_nearer = total > gain
        torch.minimum(gain, total, out=gain)
        # From the nearer end: mean - t (mean - x), or x - (1 - t)(x - mean).
        torch.where(mean_is_nearer, x, mean, out=other)
        torch.where(mean_is_nearer, mean, x, out=mean)
        torch.sub(mean, other, out=other)
        other.mul_(gain)
        mean.sub_(other)
        total, grown = grown, total
    if perhaps and fallback != "linear":
        torch.where(undecided, operands[-1 if fallback == "base" else 0], mean, out=mean)
    return Merged(mean, fallbacks)
