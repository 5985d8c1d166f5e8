"""A device of threads and CPU tensors: copies and merges happen late, as on a card.

Every stream is a thread with a queue, and sleeps before each thing it does. What "lies on the
card" is other memory, filled with NaN until something is copied there, so that a wait too few
gives wrong bytes. Work that asks for a value fails, since it would stall a card.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mergekit_cl.ring.backend import Event, Stream

Wait = tuple[str, str]
"""(who waits, whose event): of "host", "into", "compute", "out"."""
ASKING = (
    "_local_scalar_dense",
    "aten.nonzero",
    "masked_select",
    "aten._unique",
    "aten.unique",
    "aten.equal",
)


class Asked(AssertionError):
    """Work on the card wanted to know a value."""


class NoQuestions(TorchDispatchMode):
    """Refuses operations for which a host waits for a device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(name in str(func) for name in ASKING):
            raise Asked(str(func))
        return func(*args, **(kwargs or {}))


class FakeEvent:
    """Passed once its stream gets there."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.passed = threading.Event()

    def synchronize(self) -> None:
        if ("host", self.stream.name) not in self.stream.dropped:
            self.passed.wait()
        if self.stream.failures:
            raise self.stream.failures[0]


class FakeStream:
    """A thread that does what it is given, in order, `delay` seconds late each."""

    def __init__(
        self, name: str, delay: float, dropped: frozenset[Wait], failures: list[BaseException]
    ) -> None:
        self.name = name
        self.delay = delay
        self.dropped = dropped
        self.failures = failures
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def launch(self, work: Callable[[], object]) -> None:
        def late() -> None:
            time.sleep(self.delay)
            with NoQuestions():
                work()

        self._queue.put(late)

    def wait(self, event: Event) -> None:
        other = cast(FakeEvent, event)
        if (self.name, other.stream.name) not in self.dropped:
            self._queue.put(other.passed.wait)

    def record(self) -> Event:
        event = FakeEvent(self)
        self._queue.put(event.passed.set)
        return event

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        torch.set_num_threads(1)
        while (work := self._queue.get()) is not None:
            try:
                work()
            except BaseException as error:
                self.failures.append(error)


class FakeBackend:
    """delays: seconds by stream. dropped: waits that are forgotten, to show that they matter."""

    def __init__(
        self, delays: Mapping[str, float] | None = None, dropped: frozenset[Wait] = frozenset()
    ) -> None:
        self.delays = delays or {}
        self.dropped = dropped
        self.allocated = 0
        self.closed = False
        self._streams: list[FakeStream] = []
        self._failures: list[BaseException] = []

    def pinned(self, nbytes: int) -> torch.Tensor:
        self.allocated += nbytes
        return torch.full((nbytes,), 0xFF, dtype=torch.uint8)

    def memory(self, nbytes: int) -> torch.Tensor:
        return self.pinned(nbytes)

    def stream(self, name: str) -> Stream:
        made = FakeStream(name, self.delays.get(name, 0.0), self.dropped, self._failures)
        self._streams.append(made)
        return made

    def close(self) -> None:
        self.closed = True
        for stream in self._streams:
            stream.close()
