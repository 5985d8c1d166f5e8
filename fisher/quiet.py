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
        for device in sorted({p.device.type for p in model.parameters()} - {"meta"}):
            stack.enter_context(torch.autocast(device, enabled=False))
        _keep_modules(model, stack)
        _keep_parameters(model, stack)
        model.eval()
        keep_checkpointing(model, stack)
        chosen = {id(p) for p in wanted}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        yield


def _keep_modules(model: nn.Module, stack: ExitStack) -> None:
    configs: dict[int, Any] = {}
    for module in model.modules():
        stack.callback(setattr, module, "training", module.training)
        config = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            configs[id(config)] = config
        for name, buffer in module._buffers.items():
            if buffer is not None:
                stack.callback(_restore_buffer, module, name, buffer, buffer.clone())
    for config in configs.values():
        stack.callback(setattr, config, "use_cache", config.use_cache)
        config.use_cache = False


def _restore_buffer(
    module: nn.Module, name: str, buffer: torch.Tensor, content: torch.Tensor
) -> None:
    if not torch.equal(buffer, content):
        buffer.copy_(content)
    module._buffers[name] = buffer


def _keep_parameters(model: nn.Module, stack: ExitStack) -> None:
    for parameter in model.parameters():
        stack.callback(setattr, parameter, "grad", parameter.grad)
        stack.callback(parameter.requires_grad_, parameter.requires_grad)
