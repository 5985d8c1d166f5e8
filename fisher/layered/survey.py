"""What one call of a model without weights shows of how it uses them.

Every weight is a single zero, expanded to its shape, so nothing has to be loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fisher.batch import Batch
from fisher.errors import StackError
from fisher.layered.frame import Frame
from fisher.layered.slots import Slots
from fisher.layered.stack import Stack


@dataclass(frozen=True)
class Survey:
    """Weights by when they are needed.

    layers: names per layer. embeddings: looked up before the first layer, and nothing else. early:
    used there in other ways: small, and needed whenever the model calls a layer. late: all others.
    tied: those of `embeddings` that `late` holds too. form: type of what a layer returns.
    """

    layers: tuple[tuple[str, ...], ...]
    embeddings: tuple[str, ...]
    early: tuple[str, ...]
    late: tuple[str, ...]
    tied: tuple[str, ...]
    form: type


def survey(model: nn.Module, stack: Stack, slots: Slots, batch: Batch) -> Survey:
    """Look at a model whose weights are on the meta device; `batch` says how it is called.

    Raises StackError where a layer depends on weights outside of it.
    """
    device = batch.labels.device
    fakes = {
        name: torch.zeros((), dtype=slot.dtype, device=device).expand(slot.shape)
        for name, slot in slots.empty.items()
    }
    one = batch.row(0)
    floats = [name for name, fake in fakes.items() if fake.is_floating_point()]
    with slots.filled(fakes, wanted=floats) as filled:
        names = {id(parameter): name for name, parameter in filled.items()}
        frame = Frame(model, stack, device)
        frame.form, calls = _called(frame, one)
        for index, call in enumerate(calls):
            for argument, tensor in call.besides():
                if tensor.requires_grad:
                    raise StackError(f"layer {index} is given learned values: {argument}")
        touched = _Touched(names)
        with touched:
            hidden = frame.bottom(one)
        returned = calls[0].on(stack.layers[0], hidden.detach())
        frame.opened(returned)
        form = Tensor if isinstance(returned, Tensor) else tuple
        if len(stack) > 1 and form is not frame.form:
            raise StackError("the layers do not all return hidden states in the same way")
        frame.form = form
        early = touched.looked_up | touched.otherwise
        _refuse_detours(frame, one, hidden, {n: p for n, p in filled.items() if n in early}, slots)
    outside = [name for name in slots.empty if stack.index_of(name) is None]
    embeddings = touched.looked_up - touched.otherwise
    tied = {name for name in embeddings if slots.uses(name) > 1}
    if shared := [name for name in sorted(touched.otherwise) if slots.uses(name) > 1]:
        raise StackError(f"{shared[0]} is shared, and not simply an embedding and a head")
    return Survey(
        tuple(
            tuple(name for name in slots.empty if stack.index_of(name) == index)
            for index in range(len(stack))
        ),
        _among(outside, embeddings),
        _among(outside, touched.otherwise),
        tuple(n for n in outside if n in tied or n not in embeddings | touched.otherwise),
        _among(outside, tied),
        form,
    )


def _refuse_detours(
    frame: Frame,
    batch: Batch,
    hidden: Tensor,
    early: Mapping[str, nn.Parameter],
    slots: Slots,
) -> None:
    """Raise StackError where what comes after the layers sees more than what leaves the last."""
    logits = frame.top(batch, torch.zeros_like(hidden, requires_grad=True))
    if bool(logits.isnan().any()):
        raise StackError("what comes after the layers uses more than the last one's result")
    alone = [name for name in early if slots.uses(name) == 1]
    if not alone or not logits.requires_grad:
        return
    arrived = torch.autograd.grad(logits.sum(), [early[n] for n in alone], allow_unused=True)
    for name, gradient in zip(alone, arrived, strict=True):
        if gradient is not None:
            raise StackError(f"{name} is used both before and after the layers")


class _Touched(TorchFunctionMode):
    """Which parameters are looked up in, and which enter anything else."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self.looked_up: set[str] = set()
        self.otherwise: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note what goes in."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # Asking for a dtype or a shape is no use.
        if name != "__get__":
            found = self.looked_up if func is F.embedding else self.otherwise
            found.update(self._inside((*args, *kwargs.values())))
        return func(*args, **kwargs)

    def _inside(self, values: Iterable[Any]) -> Iterable[str]:
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self._names:
                    yield self._names[id(value)]
            elif isinstance(value, (list, tuple)):
                yield from self._inside(value)


def _called(frame: Frame, batch: Batch) -> tuple[type, list[Any]]:
    """How layers hand on hidden states, bare or in a tuple: whichever the model goes on with."""
    reasons = []
    for form in (Tensor, tuple):
        frame.form = form
        try:
            return form, frame.calls(batch)
        # A tensor indexed as a tuple, or the other way round, fails in the model's own way.
        except (TypeError, IndexError, ValueError, AttributeError, RuntimeError) as error:
            reasons.append(error)
    known = [error for error in reasons if isinstance(error, StackError)]
    raise known[0] if known else StackError(f"layers cannot be called one by one: {reasons[0]}")


def _among(names: Sequence[str], chosen: set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in chosen)
