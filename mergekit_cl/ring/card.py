"""One card for all workers: its streams, the scratch they take turns with, its end."""

from __future__ import annotations

from mergekit_cl.ring.backend import Backend
from mergekit_cl.ring.budget import SLOTS, RingSize
from mergekit_cl.ring.slots import Slot, Streams


class Card:
    """A backend with a ring's sizes.

    scratch: bytes on the card for one chunk. Chunks of all workers use it in turn, because their
    merges go through one stream.
    """

    def __init__(self, backend: Backend, size: RingSize) -> None:
        self.size = size
        self.scratch = backend.memory(size.scratch)
        self._backend = backend
        self._streams = Streams(
            backend.stream("into"), backend.stream("compute"), backend.stream("out")
        )

    def slots(self) -> list[Slot]:
        """A worker's slots, allocated once."""
        return [Slot(self._backend, self._streams, self.size.slot) for _ in range(SLOTS)]

    def close(self) -> None:
        """Wait for what is still queued: it refers to the slots."""
        self._backend.close()


def open_backend(device: str) -> Backend:
    """The GPU of that name."""
    import torch

    from mergekit_cl.ring.cuda import CudaBackend

    return CudaBackend(torch.device(device))
