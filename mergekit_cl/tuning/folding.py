"""A model with an adapter as the whole model it stands for: W with the update added."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.tuning.model import ADAPTER, Tuned

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def folded(tuned: Tuned) -> Iterator[None]:
    """Within, the update is in the weights, and the adapter adds nothing.

    The bits of the weights are the same again afterwards. Without an adapter nothing changes.
    """
    layers = list(_layers(tuned))
    weights = [layer.get_base_layer().weight for _, layer in layers]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for (_, layer), weight in zip(layers, weights, strict=True):
                weight.add_(layer.get_delta_weight(ADAPTER).to(weight.dtype))
                layer.enable_adapters(False)
        yield
    finally:
        with torch.no_grad():
            for (_, layer), weight, before in zip(layers, weights, kept, strict=True):
                weight.copy_(before)
                layer.enable_adapters(True)


def whole_weights(tuned: Tuned, *, everything: bool) -> frozenset[str]:
    """Names in `tuned.module` of the model's own weights, none of an adapter's factors.

    everything: all that are used; else those that training moves, through an adapter or as a whole.
    """
    moved = {f"{name}.base_layer.weight" for name, _ in _layers(tuned)}
    return frozenset(
        name
        for name, parameter in tuned.module.named_parameters()
        if ".lora_" not in name
        and ".original_module." not in name
        and (everything or parameter.requires_grad or name in moved)
    )


def _layers(tuned: Tuned) -> Iterator[tuple[str, Any]]:
    """(name, peft's layer) of everything that the adapter moves."""
    if not tuned.adapted:
        return
    from peft.tuners.lora import LoraLayer

    module: nn.Module = tuned.module
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer
