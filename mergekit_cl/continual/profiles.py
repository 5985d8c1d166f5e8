"""How power-function averages weigh the steps of a training run, and what they add up to.

The profile of exponent gamma, taken at step t, weighs time tau in proportion to tau^gamma up to t.
Everything here is about profiles alone: which one a length stands for, which combination of some is
nearest to another, and how near.

Source: Karras, Aittala, Lehtinen, Hellsten, Aila and Laine 2024, "Analyzing and improving the
training dynamics of diffusion models", section 3 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_cl.errors import OptionError

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """How a power-function average of exponent gamma, taken at `step`, weighs earlier steps."""

    gamma: float
    step: float


@dataclass(frozen=True)
class Fit:
    """The combination of stored averages that is nearest to a wanted one.

    weights: of each, in their order; they sum to 1, and some may be negative. residual: norm of the
    difference of the profiles over that of the wanted one; 0 is exact. It is the share of the
    averaged steps' own scatter that comes in besides what the wanted average has of it.
    """

    weights: tuple[float, ...]
    residual: float

    @property
    def amplification(self) -> float:
        """How many times the roundings of what was stored count."""
        return math.fsum(map(abs, self.weights))


def sigma_of(gamma: float) -> float:
    """sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))): eq. 3 of the paper."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a length: the largest real root of (g + 2)^2 (g + 3) sigma^2 = g + 1.

    Raises OptionError outside 0 < sigma_rel < 1 / sqrt(12), where gamma would be 0 or less.
    """
    if not 0 < sigma_rel < 1 / math.sqrt(12):
        raise OptionError(
            "the relative length of a power-function average is out of range",
            detail=f"sigma_rel {sigma_rel}",
            hint=f"above 0 and below {1 / math.sqrt(12):.4f}; .05 and .10 are usual",
        )
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots[np.abs(roots.imag) < 1e-9 * np.abs(roots)].real.max())


def gamma_of_half_life(half_life: float, step: float) -> float:
    """The exponent for which, at `step`, the last `half_life` steps have half of the weight.

    The weight older than step - h is (1 - h/step)^(gamma + 1).
    """
    if not 0 < half_life < step / 2:
        raise OptionError(
            "the half-life of a power-function average is below half of the steps",
            detail=f"half-life {half_life} of {step} steps",
        )
    return -1 / math.log2(1 - half_life / step) - 1


def inner_product(one: Profile, other: Profile) -> float:
    """The integral of the product of two profiles over time.

    With p(tau) = (g + 1) tau^g / t^(g+1) up to t and 0 after, m = min(t_a, t_b), M = max(t_a, t_b)
    and g_M the exponent of the later: (g_a+1)(g_b+1) / (g_a+g_b+1) * (m/M)^g_M / M.
    """
    return float(_inner_products([one], [other])[0, 0])


def fit(stored: Sequence[Profile], wanted: Profile) -> Fit:
    """Least squares of profiles, with weights that sum to 1, so that equal averages stay."""
    return fits(stored, [wanted])[0]


def fits(stored: Sequence[Profile], wanted: Sequence[Profile]) -> tuple[Fit, ...]:
    """The same for several wanted ones. Raises OptionError where nothing is stored."""
    if not stored:
        raise OptionError("no stored averages to make another from")
    count = len(stored)
    gram, cross = _inner_products(stored, stored), _inner_products(stored, wanted)
    # The sum is a constraint: one multiplier. Profiles are nearly dependent, so the least norm of
    # the solutions is taken, in units where every profile has length 1.
    lengths = np.sqrt(np.diag(gram))
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram / np.outer(lengths, lengths)
    system[:count, count] = system[count, :count] = 1 / lengths * lengths.mean()
    targets = np.vstack([cross / lengths[:, None], np.full(len(wanted), lengths.mean())])
    found = np.linalg.lstsq(system, targets, rcond=1e-13)[0][:count] / lengths[:, None]
    found /= found.sum(axis=0)
    own = np.array([inner_product(one, one) for one in wanted])
    left = own - 2 * (found * cross).sum(axis=0) + (found * (gram @ found)).sum(axis=0)
    residuals = np.sqrt(np.maximum(left, 0) / own)
    return tuple(
        Fit(tuple(weights), residual)
        for weights, residual in zip(found.T.tolist(), residuals.tolist(), strict=True)
    )


def _inner_products(ones: Sequence[Profile], others: Sequence[Profile]) -> Numbers:
    """(ones, others): `inner_product` of each pair."""
    gamma, step = (np.array([getattr(p, k) for p in ones])[:, None] for k in ("gamma", "step"))
    gammas, steps = (np.array([getattr(p, k) for p in others])[None] for k in ("gamma", "step"))
    scale = (gamma + 1) * (gammas + 1) / (gamma + gammas + 1)
    late, exponent = np.maximum(step, steps), np.where(step > steps, gamma, gammas)
    found: Numbers = scale * (np.minimum(step, steps) / late) ** exponent / late
    return found
