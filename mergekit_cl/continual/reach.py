"""Which half-lives can be made of the averages that were stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mergekit_cl.continual.profiles import Fit, Profile, fits, gamma_of_half_life
from mergekit_cl.errors import OptionError

RESIDUAL = 0.1
"""The most that a profile may be off: a tenth of the scatter that the average is to smooth."""

AMPLIFICATION = 100.0
"""The most that roundings may count: 100 float32 ones are still less than one of bfloat16."""

POINTS = 400


def fit_half_life(stored: Sequence[Profile], half_life: float) -> Fit:
    """The combination that has this half-life, in steps, at the last step stored.

    Raises OptionError, naming the half-lives that can be made, where it would be too far off.
    """
    step = max(profile.step for profile in stored)
    if 0 < half_life < step / 2:
        found = fits(stored, [Profile(gamma_of_half_life(half_life, step), step)])[0]
        if is_near(found):
            return found
    low, high = half_lives(stored)
    raise OptionError(
        "no average of this half-life can be made of what the run kept",
        detail=f"half-life {half_life:g} steps, of {step:g}",
        hint=f"from {low:g} to {high:g} steps",
    )


def half_lives(stored: Sequence[Profile]) -> tuple[float, float]:
    """The shortest and the longest half-life, in steps, that can be made at the last step stored.

    Of a grid, around the stored averages' own; three digits, rounded inwards.
    """
    step = max(profile.step for profile in stored)
    own = [_half_life(profile) for profile in stored if profile.step == step]
    grid = np.geomspace(step / 5000, step / 2, POINTS, endpoint=False).tolist()
    grid = sorted({*grid, *own})
    found = fits(stored, [Profile(gamma_of_half_life(one, step), step) for one in grid])
    low = high = grid.index(own[0])
    while low > 0 and is_near(found[low - 1]):
        low -= 1
    while high + 1 < len(grid) and is_near(found[high + 1]):
        high += 1
    return _digits(grid[low], math.ceil), _digits(grid[high], math.floor)


def is_near(found: Fit) -> bool:
    """Whether a combination is near enough to what it stands for."""
    return found.residual <= RESIDUAL and found.amplification <= AMPLIFICATION


def _half_life(profile: Profile) -> float:
    """The inverse of `gamma_of_half_life`."""
    return profile.step * -math.expm1(-math.log(2) / (profile.gamma + 1))


def _digits(value: float, rounded: Callable[[float], int]) -> float:
    """Three digits of a number, by math.ceil or math.floor."""
    unit: float = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{rounded(value / unit) * unit:.6g}")
