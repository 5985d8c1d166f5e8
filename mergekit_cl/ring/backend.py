"""What the ring asks of a device: memory on both sides, and streams joined by events."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Wait, on the host, until the stream has passed this point; raises what failed there."""


class Stream(Protocol):
    """Work that a device does in the order in which it was given."""

    def launch(self, work: Callable[[], object]) -> None:
        """Give it work: torch operations that ask for no value. Returns before they are done.

        Threads may share a stream; what one launch gives is never mixed with another's.
        """

    def wait(self, event: Event) -> None:
        """Do nothing that is launched later before another stream has passed `event`."""

    def record(self) -> Event:
        """The point after all that was launched so far."""


class Backend(Protocol):
    """One device."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """(nbytes,) uint8 in host memory that the device copies from and to by itself."""

    def memory(self, nbytes: int) -> torch.Tensor:
        """(nbytes,) uint8 on the device."""

    def stream(self, name: str) -> Stream:
        """A new stream."""

    def close(self) -> None:
        """Wait until nothing runs; the streams are of no more use."""
