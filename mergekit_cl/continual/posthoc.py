"""An average of any length, made after training from two that were kept during it.

A power-function average of exponent gamma weighs the weights at time tau in proportion to
tau^gamma. Its length is given as sigma_rel, the standard deviation of that profile over the time
trained. Snapshots of two such averages, taken every now and then, span profiles between and around
theirs: the wanted one is the combination nearest in the square of the difference of profiles.

Source: Karras, Aittala, Lehtinen, Hellsten, Aila and Laine 2024, "Analyzing and improving the
training dynamics of diffusion models", section 3 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mergekit_cl.continual.average import follow, same_tensors, start
from mergekit_cl.errors import OptionError

TRACKS = (0.05, 0.10)
"""The two lengths to keep, as sigma_rel: the paper's choice; anything from .01 to .25 follows."""


@dataclass(frozen=True)
class Profile:
    """How a power-function average of exponent gamma, taken at `step`, weighs earlier steps."""

    gamma: float
    step: float


class PowerAverage:
    """A float32 power-function average of a model's weights: p_t = t^gamma over its sum.

    sigma_rel: its length relative to the steps so far, below 1 / sqrt(12) for gamma > 0. The first
    update takes the model's weights as they are; the initial weights have no part in it.
    """

    def __init__(self, model: nn.Module, sigma_rel: float) -> None:
        self.gamma = gamma_of(sigma_rel)
        self.sigma_rel = sigma_rel
        self.step = 0
        self.tensors = start(model)

    def update(self, model: nn.Module) -> None:
        """One optimizer step more."""
        self.step += 1
        follow(self.tensors, model, decay_at(self.step, self.gamma))

    def snapshot(self) -> tuple[Profile, dict[str, Tensor]]:
        """A copy to synthesise from."""
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return Profile(self.gamma, self.step), tensors


def decay_at(step: int, gamma: float) -> float:
    """beta(t) = (1 - 1/t)^(gamma + 1), t from 1: eq. 2 of the paper.

    The product over steps weighs step i with (i/t)^(gamma+1) - ((i-1)/t)^(gamma+1), which is the
    integral of the continuous profile over that step.
    """
    decay: float = (1 - 1 / step) ** (gamma + 1)
    return decay


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
    early, late = sorted((one, other), key=lambda profile: profile.step)
    scale = (one.gamma + 1) * (other.gamma + 1) / (one.gamma + other.gamma + 1)
    product: float = scale * (early.step / late.step) ** late.gamma / late.step
    return product


def coefficients(stored: Sequence[Profile], wanted: Profile) -> tuple[float, ...]:
    """How much of each stored average makes the wanted one: least squares of their profiles.

    They sum to 1, so that equal weights stay as they are.
    """
    if not stored:
        raise OptionError("no stored averages to make another from")
    count = len(stored)
    # The sum is a constraint: one multiplier. Profiles are nearly dependent, so the least norm of
    # the solutions is taken, in units where every profile has length 1.
    lengths = np.array([math.sqrt(inner_product(one, one)) for one in stored])
    gram = np.array([[inner_product(one, other) for other in stored] for one in stored])
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram / np.outer(lengths, lengths)
    system[:count, count] = system[count, :count] = 1 / lengths * lengths.mean()
    right = np.array([inner_product(one, wanted) for one in stored]) / lengths
    target = np.append(right, lengths.mean())
    solution = np.linalg.lstsq(system, target, rcond=1e-13)[0]
    found = solution[:count] / lengths
    return tuple(float(value) for value in found / found.sum())


def profile_error(stored: Sequence[Profile], wanted: Profile) -> float:
    """How far the best combination is from the wanted profile, relative to it: 0 is exact."""
    weights = np.array(coefficients(stored, wanted))
    gram = np.array([[inner_product(one, other) for other in stored] for one in stored])
    cross = np.array([inner_product(one, wanted) for one in stored])
    own = inner_product(wanted, wanted)
    left = own - 2 * weights @ cross + weights @ gram @ weights
    return math.sqrt(max(float(left), 0.0) / own)


def synthesise(
    snapshots: Sequence[tuple[Profile, Mapping[str, Tensor]]], wanted: Profile
) -> dict[str, Tensor]:
    """The wanted average from stored ones, summed in float64 and rounded to float32.

    Integer tensors are those of the snapshot taken last before the wanted step, or first after it.
    Raises MismatchError where the snapshots' tensors differ.
    """
    weights = coefficients([profile for profile, _ in snapshots], wanted)
    first = snapshots[0][1]
    for _, tensors in snapshots[1:]:
        same_tensors(first, tensors, "other snapshot")
    _, nearest = min(snapshots, key=lambda one: abs(one[0].step - wanted.step))
    found: dict[str, Tensor] = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            found[name] = nearest[name].clone()
            continue
        total = torch.zeros_like(tensor, dtype=torch.float64)
        for weight, (_, tensors) in zip(weights, snapshots, strict=True):
            total += weight * tensors[name].double()
        found[name] = total.float()
    return found
