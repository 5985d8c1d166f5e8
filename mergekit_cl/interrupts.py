"""Stopping between steps: a signal during a step is acted on when the step is done."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mergekit_cl.errors import Interrupted

ECHO = 0.5
"""Seconds in which a signal counts once: a launcher passes on the Ctrl-C that its processes got."""


def interrupting(hint: str) -> Callable[[int, FrameType | None], None]:
    """A signal handler that raises Interrupted, once for a signal and its echo."""
    first: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first or now - first[-1] > ECHO:
            first.append(now)
            raise Interrupted(number, hint=hint)

    return interrupt


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], int | None]]:
    """Within, Ctrl-C and SIGTERM only set what the given function returns: the signal, or None.

    A second signal interrupts at once, but for an `ECHO`. Outside the main thread nothing is
    changed.
    """
    caught: list[int] = []
    first = 0.0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not caught:
            first = time.monotonic()
        elif time.monotonic() - first > ECHO:
            raise Interrupted(number)
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
