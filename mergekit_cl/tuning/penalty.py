"""What EWC adds to a step of training, and what the log says of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mergekit_cl.continual.held import HeldBack
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.schema import Ewc

EVERY = 10
"""Steps between two for which the log says how strong the penalty is: that costs a pass."""

Total = Callable[[list[float]], list[float]]


@dataclass(frozen=True)
class Penalty:
    """What holds the steps of a task back; held: None where nothing does. total: over shards."""

    held: HeldBack | None
    total: Total

    def before(self, task_norm: float, step: int) -> dict[str, float]:
        """Between clipping and the optimizer's step; gives what the log says.

        task_norm: of the gradient before it was clipped. step: of the run, from 0.
        """
        if self.held is None:
            return {}
        said = {}
        if step % EVERY == 0:
            value, square = self.held.measured(self.total)
            ratio = math.sqrt(square) / task_norm if task_norm else 0.0
            said = {"penalty": value, "penalty_ratio": ratio}
        self.held.before_step()
        return said

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """After the optimizer's step."""
        if self.held is not None:
            self.held.after_step(optimizer)


def penalty_of(settings: Ewc | None, live: Live, strength: float, total: Total) -> Penalty:
    """The penalty of the task at work; raises where the protection reaches nothing.

    strength: lambda, as a number. Protections of `online` fade once more as they are used.
    """
    if settings is None or live.protection is None or strength == 0:
        return Penalty(None, total)
    fading = settings.gamma if settings.mode == "online" else 1.0
    held = HeldBack(live.tuned.module, live.protection, strength * fading, settings.update)
    return Penalty(held, total)
