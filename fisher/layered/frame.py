"""How a model calls its own layers.

The model's forward pass runs with each layer's `forward` replaced by one that looks at its
arguments and hands the hidden states on. So masks, rotary angles and whatever else a model works
out for a layer are the model's own; here nothing is known of them. A big embedding need not be
there for that: `Unloaded` stands in for it, and its NaNs show wherever they matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fisher.batch import Batch
from fisher.errors import StackError
from fisher.layered.stack import Stack

HIDDEN = "hidden_states"
Turn = Callable[[int, "Call"], Tensor]
"""What a layer's place does when it is called: gets its index and arguments, hands on a tensor."""


@dataclass(frozen=True)
class Call:
    """The arguments of one layer, hidden states first or by name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def hidden(self) -> Any:
        """What goes through the layer."""
        return self.args[0] if self.args else self.kwargs.get(HIDDEN)

    def on(self, layer: nn.Module, hidden: Tensor) -> Any:
        """What the layer makes of other hidden states with the same arguments."""
        if self.args:
            return layer(hidden, *self.args[1:], **self.kwargs)
        return layer(**{**self.kwargs, HIDDEN: hidden})

    def besides(self) -> Iterator[tuple[str, Tensor]]:
        """The other tensors among the arguments, lists and tuples one level deep."""
        named = [*((f"argument {i}", v) for i, v in enumerate(self.args)), *self.kwargs.items()]
        for name, value in named:
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(inner, Tensor) and inner is not self.hidden:
                    yield name, inner


class Unloaded(TorchFunctionMode):
    """An embedding whose weight is on the meta device gives NaN: its result must not matter."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace such a lookup, let everything else through."""
        kwargs = kwargs or {}
        if func is F.embedding:
            ids, weight = (*args, kwargs.get("input"), kwargs.get("weight"))[:2]
            if isinstance(weight, Tensor) and weight.is_meta:
                nothing = torch.full((), float("nan"), dtype=weight.dtype, device=self._device)
                return nothing.expand(*ids.shape, weight.shape[1])
        return func(*args, **kwargs)


class Frame:
    """A model without its layers. form: type of what a layer returns, Tensor or tuple."""

    def __init__(self, model: nn.Module, stack: Stack, device: torch.device) -> None:
        self.form: type = Tensor
        self._model = model
        self._stack = stack
        self._device = device

    def call(self, batch: Batch, index: int) -> Call:
        """How the model calls layer `index` for a batch."""
        found: list[Call] = []

        def turn(place: int, call: Call) -> Tensor:
            if place == index:
                found.append(call)
                raise _Reached
            return _hidden(call, batch)

        with torch.no_grad():
            self._until_reached(batch, turn)
        return found[0]

    def calls(self, batch: Batch) -> list[Call]:
        """How the model calls every layer, hidden states going through unchanged."""
        found: list[Call] = []

        def turn(place: int, call: Call) -> Tensor:
            found.append(call)
            if place + 1 == len(self._stack):
                raise _Reached
            return _hidden(call, batch)

        self._until_reached(batch, turn)
        return found

    def bottom(self, batch: Batch) -> Tensor:
        """The hidden states that enter the first layer."""
        found: list[Tensor] = []

        def turn(place: int, call: Call) -> Tensor:
            found.append(_hidden(call, batch))
            raise _Reached

        self._until_reached(batch, turn)
        return found[0]

    def layer(self, batch: Batch, index: int, hidden: Tensor) -> Tensor:
        """What layer `index` makes of hidden states."""
        return self.opened(self.call(batch, index).on(self._stack.layers[index], hidden))

    def top(self, batch: Batch, hidden: Tensor) -> Tensor:
        """The logits of a batch, from the hidden states that leave the last layer."""

        def turn(place: int, call: Call) -> Tensor:
            entering = _hidden(call, batch)
            return hidden if place + 1 == len(self._stack) else torch.full_like(entering, torch.nan)

        output = self._run(batch, turn)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    def opened(self, returned: Any) -> Tensor:
        """The hidden states in what a layer returned.

        Others in a tuple are attention maps and the like; a model that went on with them would fail
        on the tuples of one that stand in for layers.
        """
        hidden = returned[0] if isinstance(returned, tuple) and returned else returned
        if not isinstance(hidden, Tensor):
            raise StackError(f"a layer returns no hidden states but {type(returned).__name__}")
        return hidden

    def _until_reached(self, batch: Batch, turn: Turn) -> None:
        try:
            self._run(batch, turn)
        except _Reached:
            return
        raise StackError("the model does not call all of its layers")

    def _run(self, batch: Batch, turn: Turn) -> Any:
        with Unloaded(self._device), self._replaced(turn):
            return self._model(**batch.inputs)

    @contextmanager
    def _replaced(self, turn: Turn) -> Iterator[None]:
        """Each layer's forward replaced; the model must call each once, in order, linked."""
        passed: list[Tensor] = []

        def replacement(place: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                call = Call(args, kwargs)
                if place != len(passed):
                    raise StackError("the model calls its layers more than once or out of order")
                if passed and call.hidden is not passed[-1]:
                    raise StackError(f"the model changes hidden states before layer {place}")
                handed = turn(place, call)
                passed.append(handed)
                return handed if self.form is Tensor else (handed,)

            return forward

        try:
            for place, layer in enumerate(self._stack.layers):
                layer.forward = replacement(place)
            yield
        finally:
            for layer in self._stack.layers:
                layer.__dict__.pop("forward", None)


class _Reached(Exception):
    """The layer asked for was called: the rest of the pass is not needed."""


def _hidden(call: Call, batch: Batch) -> Tensor:
    hidden = call.hidden
    if not isinstance(hidden, Tensor) or hidden.dim() < 2 or hidden.shape[0] != len(batch):
        raise StackError("the layers' first argument is not one row of hidden states per example")
    return hidden
