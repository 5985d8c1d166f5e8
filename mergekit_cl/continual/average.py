"""An exponential moving average of a model's weights while it trains.

The same formula as `clmerge ema-merge` (merge/ema.py), so the average of checkpoints and of steps
have the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mergekit_cl.continual.buckets import local
from mergekit_cl.errors import MismatchError, OptionError
from mergekit_cl.merge.ema import decay_of_half_life, decays, ema_update
from mergekit_cl.merge.kernel import SCRATCH_BUFFERS

Unit = Literal["steps", "tokens"]

PIECE = 2**17
"""Elements per call of the formula: what it works on stays in the cache."""


class Weights(Protocol):
    """What is averaged: a `torch.nn.Module`, or the part of one that is trained."""

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Tied ones once."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Such as batch statistics."""


class WeightAverage:
    """A float32 average of every parameter and float buffer, on the model's device.

    half_life: how many steps or tokens (`unit`) halve the weight of what came before. warmup: early
    updates forget faster, d_t = min(d, (1 + t) / (10 + t)). Integer buffers are the newest ones.
    Begins as a copy of the model. Raises OptionError for a half-life that is not positive.
    """

    def __init__(
        self, model: Weights, *, half_life: float, unit: Unit = "steps", warmup: bool = False
    ) -> None:
        if not half_life > 0:
            raise OptionError("a half-life is above 0", detail=f"half-life {half_life} {unit}")
        self.half_life = float(half_life)
        self.unit: Unit = unit
        self.warmup = warmup
        self.updates = 0
        self.tensors = start(model)

    def restart(self, model: Weights) -> None:
        """Forget what was averaged and begin at the model's weights."""
        self.tensors, self.updates = start(model), 0

    @torch.no_grad()
    def update(self, model: Weights, *, steps: int = 1, tokens: int | None = None) -> None:
        """Move towards the model's weights, after `steps` optimizer steps or `tokens` tokens.

        An average with its half-life in tokens needs `tokens`.
        """
        amount = steps if self.unit == "steps" else tokens
        if amount is None or amount < 0:
            raise OptionError("an average with its half-life in tokens is told how many there were")
        decay = decay_of_half_life(self.half_life / amount) if amount else 1.0
        (now,) = decays(decay, 1, warmup=self.warmup, updates=self.updates)
        follow(self.tensors, model, now)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, model: Weights) -> None:
        """Give a model the averaged weights, rounded to its own dtypes."""
        for name, tensor in matched(self.tensors, model).items():
            tensor.copy_(self.tensors[name])

    @contextmanager
    def applied(self, model: Weights) -> Iterator[None]:
        """The model with the averaged weights inside `with`, with its own bits again after it."""
        own = {name: tensor.clone() for name, tensor in matched(self.tensors, model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in matched(self.tensors, model).items():
                    tensor.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """All of it: `tensors` by name, and plain numbers beside them."""
        return {
            "tensors": dict(self.tensors),
            "updates": self.updates,
            "half_life": self.half_life,
            "unit": self.unit,
            "warmup": self.warmup,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, to the bit.

        Raises MismatchError where the tensors are not those of this model, or the half-life is
        another: an average of two half-lives has none.
        """
        for key in ("half_life", "unit", "warmup"):
            if state[key] != getattr(self, key):
                raise MismatchError(
                    f"the stored average has another {key.replace('_', '-')}",
                    detail=f"{state[key]} in the file, {getattr(self, key)} asked for",
                    hint=f"ask for {key} {state[key]}, or begin a new average",
                )
        same_tensors(self.tensors, state["tensors"], "stored average")
        for name, tensor in self.tensors.items():
            tensor.copy_(state["tensors"][name])
        self.updates = int(state["updates"])


def state_of(model: Weights) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    return {
        **{name: parameter.detach() for name, parameter in model.named_parameters()},
        **dict(model.named_buffers()),
    }


def start(model: Weights) -> dict[str, Tensor]:
    """A copy to average into: float32 and contiguous where the model has floating point."""
    return {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype).clone(
            memory_format=torch.contiguous_format
        )
        for name, tensor in state_of(model).items()
    }


def matched(average: Mapping[str, Tensor], model: Weights) -> dict[str, Tensor]:
    """The model's tensors; raises MismatchError where they are not those of the average."""
    found = state_of(model)
    same_tensors(average, found, "model")
    return found


@torch.no_grad()
def follow(average: Mapping[str, Tensor], model: Weights, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model; integer tensors become the model's."""
    for name, online in matched(average, model).items():
        if average[name].is_floating_point():
            _average_into(average[name], online, decay)
        else:
            average[name].copy_(online)


def same_tensors(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str) -> None:
    """Raise MismatchError where names or shapes differ; `what` says whose `theirs` are."""
    wrong = sorted(mine.keys() ^ theirs.keys()) or sorted(
        name for name in mine if mine[name].shape != theirs[name].shape
    )
    if wrong:
        raise MismatchError(
            f"the {what} and the average do not have the same tensors",
            detail=f"{', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}",
            hint="a vocabulary that grew begins a new average",
        )


def _average_into(state: Tensor, online: Tensor, decay: float) -> None:
    flat, other = local(state).view(-1), local(online).reshape(-1)
    length = min(PIECE, flat.numel())
    scratch = [torch.empty(length, device=flat.device) for _ in range(SCRATCH_BUFFERS)]
    for first in range(0, flat.numel(), PIECE):
        piece = flat[first : first + PIECE]
        newest = other[first : first + PIECE].to(piece.device, torch.float32)
        used = [buffer[: len(piece)] for buffer in scratch]
        piece.copy_(ema_update([piece, newest], used, decays=(decay,)).exact)
