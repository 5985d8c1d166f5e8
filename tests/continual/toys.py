"""Small sets of parameters with a protection, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mergekit_cl.continual.ewc import Protection

SHAPES = {"wide": (5, 7), "long": (33,), "scalar": (), "deep": (2, 3, 4)}


def parameters(
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    dtype: torch.dtype = torch.float32,
) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in shapes.items()
    }


def protection(
    seed: int = 1,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    dtype: torch.dtype = torch.float32,
) -> Protection:
    """Fisher values over many orders of magnitude, a third of them 0."""
    generator = torch.Generator().manual_seed(seed)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    fisher = {
        name: (3 * random(shape)).exp() * (random(shape) > -0.5) for name, shape in shapes.items()
    }
    anchor = {name: random(shape) for name, shape in shapes.items()}
    return Protection(
        {name: tensor.to(dtype) for name, tensor in fisher.items()},
        {name: tensor.to(dtype) for name, tensor in anchor.items()},
    )


def as_loss(parameters: Mapping[str, Tensor], protection: Protection, strength: float) -> Tensor:
    """The penalty as others write it: a loss in the graph."""
    terms = [
        (protection.fisher[name] * (parameters[name] - protection.anchor[name]) ** 2).sum()
        for name in protection.fisher
    ]
    return strength / 2 * torch.stack(terms).sum()
