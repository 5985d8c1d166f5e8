"""What EWC adds to a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Penalty:
    """Nothing is held back."""

    def before(
        self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Any], *, task_norm: float
    ) -> dict[str, float]:
        """Between clipping and the optimizer's step; gives what the log says of it."""
        return {}

    def after(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Any]) -> None:
        """After the optimizer's step."""
