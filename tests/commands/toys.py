"""The toy checkpoints a, b and c of `three` as numbers, to compare outputs with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors.torch import load_file

from tests.commands.checkpoints import SHAPES, weights
from tests.commands.running import clmerge

Tensors = dict[str, torch.Tensor]
EMBED, LAYER0, LAYER1, NORM = SHAPES
A, B, C = (weights(seed) for seed in (1, 2, 3))


def fisher_of(model: str) -> Tensors:
    """The stored Fisher of a model in float64."""
    stored = load_file(f"{model}/clmerge/fisher.safetensors")
    return {name: tensor.double() for name, tensor in stored.items()}


def merged(path: str = "merged/model.safetensors") -> Tensors:
    """The tensors of an output."""
    return load_file(path)


def check(found: Tensors, expected: Callable[[str], torch.Tensor]) -> None:
    """Compare with a float64 result within a unit or two in the last place of the inputs."""
    assert found.keys() == SHAPES.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected(name), rtol=2e-7, atol=3e-7)


def run(*line: str) -> None:
    """Run a command that must succeed."""
    result = clmerge(*line)
    assert result.code == 0, result.err
