"""EWC for who trains with transformers' Trainer, or with a trainer built on it such as TRL's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.continual.ewc import Protection
from mergekit_cl.continual.held import HeldBack, Update
from mergekit_cl.errors import OptionError

if TYPE_CHECKING:
    from transformers import TrainerCallback


def ewc_callback(
    protection: Protection, strength: float, *, update: Update = "coupled"
) -> TrainerCallback:
    """A callback that holds a model back while a Trainer trains it.

        Trainer(model, args, train_dataset=rows, callbacks=[ewc_callback(protection, 100.0)])

    protection: by the parameter names the model has without adapters. strength: lambda, in the
    unit of the protection's Fisher. The penalty is added after clipping, once per optimizer step,
    whatever the accumulation, precision or number of processes; `ewc_penalty` is in the log.
    `callback.held.coverage` says, once training has begun, what is protected. Training does not
    begin where that is nothing, under DeepSpeed, which hides gradients, or as `HeldBack` says.
    """
    from transformers import TrainerCallback

    class EwcCallback(TrainerCallback):  # type: ignore[misc]
        """Calls a `HeldBack` model where the Trainer allows it."""

        held: HeldBack

        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            if getattr(args, "deepspeed", None):
                raise OptionError(
                    "under DeepSpeed no callback sees the gradients",
                    detail="TrainingArguments.deepspeed is set",
                    hint="train with DDP or FSDP2",
                )
            self.held = HeldBack(model, protection, strength, update)

        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
        ) -> None:
            _unscale(optimizer)
            self.held.before_step()

        def on_optimizer_step(
            self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
        ) -> None:
            if not getattr(optimizer, "step_was_skipped", False):
                self.held.after_step(_inner(optimizer))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs is not None and "loss" in logs:
                logs["ewc_penalty"] = self.held.penalty()

    return EwcCallback()


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside accelerate's."""
    found: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found


def _unscale(optimizer: Any) -> None:
    """Take fp16's loss scale out of the gradients, where clipping has not done it already."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return
    try:
        scaler.unscale_(_inner(optimizer))
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise
