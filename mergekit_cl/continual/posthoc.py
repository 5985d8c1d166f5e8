"""An average of any length, made after training from two that were kept during it.

A power-function average of exponent gamma weighs the weights at time tau in proportion to
tau^gamma. Its length is given as sigma_rel, the standard deviation of that profile over the time
trained. Snapshots of two such averages, taken every now and then, span profiles between and around
theirs: the wanted one is the combination nearest in the square of the difference of profiles.

Source: Karras, Aittala, Lehtinen, Hellsten, Aila and Laine 2024, "Analyzing and improving the
training dynamics of diffusion models", section 3 and appendix C.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergekit_cl.continual.average import Weights, follow, same_tensors, start
from mergekit_cl.continual.profiles import Profile, fit, gamma_of
from mergekit_cl.errors import MismatchError

TRACKS = (0.05, 0.10)
"""The two lengths to keep, as sigma_rel: the paper's choice; anything from .01 to .25 follows."""


class PowerAverage:
    """A float32 power-function average of a model's weights: p_t = t^gamma over its sum.

    sigma_rel: its length relative to the steps so far, below 1 / sqrt(12) for gamma > 0. The first
    update takes the model's weights as they are; the initial weights have no part in it.
    """

    def __init__(self, model: Weights, sigma_rel: float) -> None:
        self.gamma = gamma_of(sigma_rel)
        self.sigma_rel = sigma_rel
        self.step = 0
        self.tensors = start(model)

    def update(self, model: Weights) -> None:
        """One optimizer step more."""
        self.step += 1
        follow(self.tensors, model, decay_at(self.step, self.gamma))

    def snapshot(self) -> tuple[Profile, dict[str, Tensor]]:
        """A copy to synthesise from."""
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return Profile(self.gamma, self.step), tensors

    def state_dict(self) -> dict[str, Any]:
        """All of it: `tensors` by name, and plain numbers beside them."""
        return {"tensors": dict(self.tensors), "sigma_rel": self.sigma_rel, "step": self.step}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the bit.

        Raises MismatchError where the tensors or the length are others.
        """
        if state["sigma_rel"] != self.sigma_rel:
            raise MismatchError(
                "the stored average has another length",
                detail=f"sigma_rel {state['sigma_rel']}, not {self.sigma_rel}",
            )
        same_tensors(self.tensors, state["tensors"], "stored average")
        for name, tensor in self.tensors.items():
            tensor.copy_(state["tensors"][name])
        self.step = int(state["step"])


def tracks_of(model: Weights) -> tuple[PowerAverage, ...]:
    """The averages to keep along a run, before its first step."""
    return tuple(PowerAverage(model, sigma_rel) for sigma_rel in TRACKS)


def decay_at(step: int, gamma: float) -> float:
    """beta(t) = (1 - 1/t)^(gamma + 1), t from 1: eq. 2 of the paper.

    The product over steps weighs step i with (i/t)^(gamma+1) - ((i-1)/t)^(gamma+1), which is the
    integral of the continuous profile over that step.
    """
    decay: float = (1 - 1 / step) ** (gamma + 1)
    return decay


def synthesise(
    snapshots: Sequence[tuple[Profile, Mapping[str, Tensor]]], wanted: Profile
) -> dict[str, Tensor]:
    """The wanted average from stored ones, summed in float64 and rounded to float32.

    Integer tensors are those of the snapshot taken last before the wanted step, or first after it.
    Raises MismatchError where the snapshots' tensors differ.
    """
    weights = fit([profile for profile, _ in snapshots], wanted).weights
    first = snapshots[0][1]
    for _, tensors in snapshots[1:]:
        same_tensors(first, tensors, "other snapshot")
    _, nearest = min(snapshots, key=lambda one: abs(one[0].step - wanted.step))
    found: dict[str, Tensor] = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            found[name] = nearest[name].clone()
            continue
        values = (tensors[name] for _, tensors in snapshots)
        found[name] = combined(zip(weights, values, strict=True))
    return found


def combined(parts: Iterable[tuple[float, Tensor]]) -> Tensor:
    """The sum of weights times tensors of one shape, taken in float64, as float32."""
    first, *rest = ((weight, values.double()) for weight, values in parts)
    total = first[0] * first[1]
    for weight, values in rest:
        total += weight * values
    return total.float()
