"""A CUDA GPU by torch's streams, events and pinned memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from mergekit_cl.errors import OptionError
from mergekit_cl.ring.backend import Event

if TYPE_CHECKING:
    import torch


class CudaBackend:
    """One GPU. Source: CUDA C++ Programming Guide, asynchronous concurrent execution."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Host memory that is never paged out; raises OptionError where there is too little."""
        import torch

        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise _no_room(nbytes, "pinned memory", error) from error

    def memory(self, nbytes: int) -> torch.Tensor:
        """Memory on the card that no stream still uses; raises OptionError for too little."""
        import torch

        try:
            made = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            raise _no_room(nbytes, str(self.device), error) from error
        return made

    def stream(self, name: str) -> CudaStream:
        """A stream beside the default one; `name` is for people."""
        return CudaStream(self.device)

    def close(self) -> None:
        """Wait for the card."""
        import torch

        torch.cuda.synchronize(self.device)


def _no_room(nbytes: int, where: str, error: RuntimeError) -> OptionError:
    said = str(error).partition("\n")[0]
    return OptionError(
        "the buffers of a merge on a GPU do not fit",
        detail=f"{nbytes} bytes in {where}: {said}",
        hint="give a smaller --memory, or --device cpu: the bytes are the same",
    )


class CudaStream:
    """Launches are queued by the driver; a lock keeps those of one thread together."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def launch(self, work: Callable[[], object]) -> None:
        """Run Python now, the card's part later."""
        import torch

        with self._lock, torch.cuda.stream(self._stream):
            work()

    def wait(self, event: Event) -> None:
        """Hold back later work."""
        import torch

        self._stream.wait_event(cast(torch.cuda.Event, event))

    def record(self) -> Event:
        """An event whose waiting host thread sleeps: spinning would take a reader's core."""
        import torch

        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._stream.record_event(event)
        return event
