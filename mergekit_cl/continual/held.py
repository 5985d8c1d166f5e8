"""A model that is trained under a protection: what a training loop has to call, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mergekit_cl.continual.adapted import adapted
from mergekit_cl.continual.coverage import Coverage, coverage
from mergekit_cl.continual.ewc import (
    Protection,
    add_penalty_gradient,
    penalty_sums,
    penalty_value,
)
from mergekit_cl.continual.lowrank import add_lowrank_gradient, lowrank_penalty_value
from mergekit_cl.continual.proximal import proximal_step
from mergekit_cl.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

Update = Literal["coupled", "proximal"]
Total = Callable[[list[float]], list[float]]


class HeldBack:
    """EWC on one model, whole or by LoRA, for one task.

    coverage: what of the protection is reached. The protection's names are those of the model
    without adapters; its tensors are moved, and sharded, to where the parameters are. Raises
    MismatchError where nothing would be protected, OptionError for adapters that are not plain
    LoRA and for the proximal update of low-rank factors.
    """

    def __init__(
        self,
        model: nn.Module,
        protection: Protection,
        strength: float,
        update: Update = "coupled",
    ) -> None:
        weights = adapted(model)
        if update == "proximal" and weights.lowrank:
            raise OptionError(
                "the proximal update has no closed form for low-rank factors",
                detail=f"{weights.lowrank[0].name} is trained by LoRA",
                hint='use the coupled update (update = "coupled")',
            )
        self.strength, self.update = strength, update
        self._protection = _beside(protection, weights.parameters)
        self._lowrank = weights.lowrank
        self._whole = {n: p for n, p in weights.parameters.items() if n not in weights.names}
        self.coverage: Coverage = coverage(
            weights.parameters, self._protection, adapted=weights.names
        )

    def before_step(self) -> None:
        """Once per optimizer step, when the task's gradient is unscaled and clipped."""
        if self.update == "coupled":
            add_penalty_gradient(self._whole, self._protection, self.strength)
            add_lowrank_gradient(self._lowrank, self._protection, self.strength)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Right after an optimizer step that was not skipped, before the schedule's.

        optimizer: torch's own, not what an engine wraps around it.
        """
        if self.update == "proximal":
            proximal_step(optimizer, self._whole, self._protection, self.strength)

    def penalty(self) -> float:
        """lambda/2 sum F (theta - anchor)^2 as it is now, in the unit of the Fisher."""
        whole = penalty_value(self._whole, self._protection, self.strength)
        return float(whole + lowrank_penalty_value(self._lowrank, self._protection, self.strength))

    def measured(self, total: Total = lambda values: values) -> tuple[float, float]:
        """The penalty, and the sum of squares of the gradient it adds: how strong it is now.

        total: adds up over processes where parameters are sharded: each has its part. Where every
        process holds all of them there is nothing to add up.
        """
        value, square = total(list(penalty_sums(self._whole, self._protection, self.strength)))
        factors = [side for w in self._lowrank for one in w.factors for side in (one.a, one.b)]
        kept = [side.grad for side in factors]
        for side in factors:
            side.grad = None
        add_lowrank_gradient(self._lowrank, self._protection, self.strength)
        square += sum(float(s.grad.double().square().sum()) for s in factors if s.grad is not None)
        for side, gradient in zip(factors, kept, strict=True):
            side.grad = gradient
        lowrank = lowrank_penalty_value(self._lowrank, self._protection, self.strength)
        return value + float(lowrank), square


def _beside(protection: Protection, parameters: Mapping[str, Tensor]) -> Protection:
    """The protection where its parameters are: on their devices, sharded as they are."""

    def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: _like(parameters[name], tensor) if name in parameters else tensor
            for name, tensor in tensors.items()
        }

    return Protection(moved(protection.fisher), moved(protection.anchor))


def _like(parameter: Any, tensor: Tensor) -> Tensor:
    tensor = tensor.to(parameter.device)
    if not hasattr(parameter, "to_local") or hasattr(tensor, "to_local"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
