"""Gradient checkpointing of a transformers model, kept while the model is not in training mode.

transformers repeats a layer's forward pass only where the layer is in training mode, and a layer in
training mode would drop out. So the layer says that it is, but for as long as it runs. Repeating is
done without re-entering autograd: the other way returns no gradients where a layer's input has
none, as with a frozen embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def keep_checkpointing(modules: Iterable[nn.Module], stack: ExitStack) -> None:
    """Let the layers of an evaluated model save memory as they did; undone by `stack`."""
    for module in modules:
        if getattr(module, "gradient_checkpointing", False):
            names = {base.__name__ for base in type(module).__mro__}
            if "GradientCheckpointingLayer" in names:
                _keep(module, stack)


def _keep(layer: Any, stack: ExitStack) -> None:
    name = "_gradient_checkpointing_func"
    stack.callback(setattr, layer, name, getattr(layer, name))
    setattr(layer, name, partial(_repeat, layer))
    layer.training = True


def _repeat(layer: nn.Module, run: Callable[..., Any], *args: Any) -> Any:
    """`run(*args)` now and once more in the backward pass, both in evaluation mode."""

    def evaluated(*values: Any) -> Any:
        layer.training = False
        try:
            return run(*values)
        finally:
            layer.training = True

    return checkpoint(evaluated, *args, use_reentrant=False)
