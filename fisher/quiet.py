"""The state a model is estimated in, and its own state given back afterwards.

Dropout would make the gradient another model's, batch statistics would change the model, a cache
would carry one batch into the next. Autocast is switched off: the weights' dtype is the compute
dtype, so that it can be recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fisher.checkpointing import keep_checkpointing


@contextmanager
def quiet(model: nn.Module, wanted: Iterable[nn.Parameter]) -> Iterator[None]:
    """Evaluate `model` with gradients for exactly the `wanted` parameters, whose `.grad` is None.

    Restores training flags, requires_grad, .grad, buffers and the configs' `use_cache`, also
    after an error.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        modules, parameters = list(model.modules()), list(model.parameters())
        for device in sorted({p.device.type for p in parameters} - {"meta"}):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(_restore_modules, [(module, module.training) for module in modules])
        _keep_buffers(modules, stack)
        _keep_configs(modules, stack)
        stack.callback(_restore_parameters, [(p, p.requires_grad, p.grad) for p in parameters])
        if any(module.training for module in modules):
            model.eval()
        keep_checkpointing(modules, stack)
        chosen = {id(p) for p in wanted}
        for parameter in parameters:
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        yield


def _keep_buffers(modules: Iterable[nn.Module], stack: ExitStack) -> None:
    for module in modules:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                stack.callback(_restore_buffer, module, name, buffer, buffer.clone())


def _keep_configs(modules: Iterable[nn.Module], stack: ExitStack) -> None:
    configs: dict[int, Any] = {}
    for module in modules:
        config = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            configs[id(config)] = config
    for config in configs.values():
        stack.callback(setattr, config, "use_cache", config.use_cache)
        config.use_cache = False


def _restore_modules(before: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, training in before:
        if module.training != training:
            module.training = training


def _restore_buffer(
    module: nn.Module, name: str, buffer: torch.Tensor, content: torch.Tensor
) -> None:
    if not torch.equal(buffer, content):
        buffer.copy_(content)
    module._buffers[name] = buffer


def _restore_parameters(before: Iterable[tuple[nn.Parameter, bool, torch.Tensor | None]]) -> None:
    for parameter, wanted, gradient in before:
        parameter.requires_grad_(wanted)
        parameter.grad = gradient
