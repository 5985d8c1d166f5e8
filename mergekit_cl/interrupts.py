"""Stopping between steps: a signal during a step is acted on when the step is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mergekit_cl.errors import Interrupted


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], int | None]]:
    """Within, Ctrl-C and SIGTERM only set what the given function returns: the signal, or None.

    A second signal interrupts at once. Outside the main thread nothing is changed.
    """
    caught: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if caught:
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
