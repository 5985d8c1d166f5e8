"""Slots of a ring: what may happen to one, and after which events.

The input half goes: filled by the host, sent (`loaded`: it may be filled again), merged. The
output half: merged (`computed`: the card's copy of the inputs may be written over), fetched
(`fetched`: the host may read it), taken. So one slot's inputs are filled and sent again while its
output still waits to be taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mergekit_cl.ring.backend import Backend, Event, Stream

if TYPE_CHECKING:
    import torch


class SlotBytes(NamedTuple):
    """Bytes of one slot, on each side: stored inputs, what is written, and the table of counts."""

    inputs: int
    output: int
    table: int


class Twin:
    """The same bytes in pinned memory and on the card."""

    def __init__(self, backend: Backend, nbytes: int) -> None:
        self.here = backend.pinned(nbytes)
        self.there = backend.memory(nbytes)


@dataclass(frozen=True)
class Streams:
    """The card's three queues, shared by all workers."""

    into: Stream
    compute: Stream
    out: Stream


class Slot:
    """One chunk's place; its methods keep the order of the ring. For one host thread."""

    def __init__(self, backend: Backend, streams: Streams, sizes: SlotBytes) -> None:
        self.inputs = Twin(backend, sizes.inputs)
        self.output = Twin(backend, sizes.output)
        self.table = Twin(backend, sizes.table)
        self._streams = streams
        self._loaded: Event | None = None
        self._computed: Event | None = None
        self._fetched: Event | None = None

    @property
    def is_pending(self) -> bool:
        """Whether an output is on its way that nobody has taken."""
        return self._fetched is not None

    def refill(self) -> torch.Tensor:
        """The pinned input half, once the copy of what was in it has ended."""
        if self._loaded is not None:
            self._loaded.synchronize()
        return self.inputs.here

    def send(self, nbytes: int) -> None:
        """Copy the first bytes of the input half in, once the card has used what lies there."""
        into = self._streams.into
        if self._computed is not None:
            into.wait(self._computed)
        here, there = self.inputs.here[:nbytes], self.inputs.there[:nbytes]
        into.launch(lambda: there.copy_(here, non_blocking=True))
        self._loaded = into.record()

    def merge(self, work: Callable[[], None], written: int, counted: int) -> None:
        """Do `work` on what was sent, then copy the first bytes of output and table back.

        Raises RuntimeError where an output that nobody took would be written over.
        """
        if self._loaded is None or self._fetched is not None:
            raise RuntimeError("a slot was merged before it was sent, or before it was taken")
        compute, out = self._streams.compute, self._streams.out
        compute.wait(self._loaded)
        compute.launch(work)
        self._computed = compute.record()
        out.wait(self._computed)
        for twin, nbytes in ((self.output, written), (self.table, counted)):
            here, there = twin.here[:nbytes], twin.there[:nbytes]
            out.launch(_copy_out(here, there))
        self._fetched = out.record()

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The pinned output and table, once they are there; valid until the next `merge`.

        Raises RuntimeError where nothing was merged.
        """
        if self._fetched is None:
            raise RuntimeError("a slot was taken that nothing was merged in")
        self._fetched.synchronize()
        self._fetched = None
        return self.output.here, self.table.here


def _copy_out(here: torch.Tensor, there: torch.Tensor) -> Callable[[], object]:
    return lambda: here.copy_(there, non_blocking=True)
