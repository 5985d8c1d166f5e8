"""How long a streamed run will take, from one batch through a model of one of its layers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fisher.batch import Batch
from fisher.keeping import kept_for_backward
from fisher.layered.boundaries import InMemory
from fisher.layered.slots import Slots
from fisher.layered.stack import Stack, find_stack
from fisher.layered.survey import survey
from fisher.streamed import Load, Streamed, Ways


@dataclass(frozen=True)
class Trial:
    """Seconds of one batch; loading is apart, since it happens once for all batches.

    layer: one layer forward, and forward and backward. outside: embeddings and head. share: the
    layer's part of the weights of all layers. kept: bytes that the batch keeps for the backward
    pass within one part of the model, at most.
    """

    layer: float
    outside: float
    load_layer: float
    load_outside: float
    share: float
    kept: int

    def expected(self, batches: float) -> float:
        """Seconds of a whole run over as much as `batches` batches like this one."""
        layers = (self.load_layer + batches * self.layer) / self.share
        return layers + self.load_outside + batches * self.outside


def try_layer(
    model: nn.Module, batch: Batch, load: Load, device: torch.device, **options: Any
) -> Trial:
    """Run one batch through embeddings, the largest layer and head, and back; nothing is written.

    model, load, options: as for `Streamed`. Raises StackError as a run of the whole would.
    """
    stack = find_stack(model)
    survey(model, stack, Slots(model), batch.to(device))
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in stack.layers]
    largest = sizes.index(max(sizes))
    alone, whole = f"{stack.prefix}.0.", f"{stack.prefix}.{largest}."
    include = options.pop("include", None)

    def named(name: str) -> str:
        return name.replace(alone, whole, 1) if name.startswith(alone) else name

    with kept_for_backward() as keeping, _alone(model, stack, largest):
        watch = _Watch(alone)
        always: list[Tensor] = []

        def timed(names: Sequence[str]) -> Mapping[str, Tensor]:
            watch.loading(names)
            found = load([named(name) for name in names])
            values = {name: found[named(name)] for name in names}
            if not watch.calls:  # what is loaded first stays to the end
                always.extend(values.values())
            keeping.leave_out((*always, *values.values()))
            watch.loaded(_settled(device))
            return values

        ways = Ways(timed, _drop, InMemory(), InMemory(), _forget, (), _forget)
        Streamed(
            model,
            lambda: iter([batch]),
            ways,
            device=device,
            include=None if include is None else lambda name: include(named(name)),
            **options,
        ).run()
        watch.ended(_settled(device))
    return Trial(
        layer=watch.spent[True],
        outside=watch.spent[False],
        load_layer=watch.spent_loading[True],
        load_outside=watch.spent_loading[False],
        share=sizes[largest] / sum(sizes),
        kept=keeping.peak,
    )


class _Watch:
    """Seconds by whether they went to the layer, from one load to the next."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self.calls = 0
        self.spent = {True: 0.0, False: 0.0}
        self.spent_loading = {True: 0.0, False: 0.0}
        self._inside = False
        self._since = time.perf_counter()

    def loading(self, names: Sequence[str]) -> None:
        """A part ends, and the next one is asked for."""
        if self.calls:
            self.spent[self._inside] += time.perf_counter() - self._since
        self._inside = any(name.startswith(self._layer) for name in names)
        self._since = time.perf_counter()

    def loaded(self, now: float) -> None:
        """It is there."""
        self.calls += 1
        self.spent_loading[self._inside] += now - self._since
        self._since = now

    def ended(self, now: float) -> None:
        """So is the last one's result."""
        self.spent[self._inside] += now - self._since


@contextmanager
def _alone(model: nn.Module, stack: Stack, index: int) -> Iterator[None]:
    """Within, the model has this layer and no other."""
    modules = model.get_submodule(stack.prefix)._modules
    kept = dict(modules)
    modules.clear()
    modules["0"] = kept[str(index)]
    try:
        yield
    finally:
        modules.clear()
        modules.update(kept)


def _settled(device: torch.device) -> float:
    """Now, when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _drop(name: str, diagonal: Mapping[str, Tensor]) -> None:
    """A trial's diagonal is of no use."""


def _forget(said: Any) -> None:
    """So is what would be recorded."""
