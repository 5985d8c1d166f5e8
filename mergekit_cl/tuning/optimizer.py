"""The optimizer of a task, and its state by the names of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.tuning.schema import Optimizer

if TYPE_CHECKING:
    from torch import Tensor, nn


def make_optimizer(
    settings: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """A fresh optimizer. Weight decay is for matrices: biases and norms are not pulled to 0."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters.values() if p.dim() > 1]},
        {"params": [p for p in parameters.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.AdamW(groups, lr=rate, betas=settings.betas, weight_decay=decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """{"name:moment": values} of what the optimizer keeps of each parameter it has stepped."""
    return {
        f"{name}:{key}": value
        for name, parameter in parameters.items()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Give the optimizer the state that `optimizer_tensors` took, and none else."""
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, moment = key.rpartition(":")
        optimizer.state[parameters[name]][moment] = value
