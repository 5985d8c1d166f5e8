"""How much is done, how fast, time left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, TextIO

from mergekit_cl.report.amounts import amount, duration

SECONDS_BETWEEN_LINES = 5.0
Unit = Literal["bytes", "rows", "layer rows"]
Advance = Callable[[int], None]


class Start(Protocol):
    """Begins to show progress towards a total; gives what to call with each amount done."""

    def __call__(self, title: str, total: int, unit: Unit = "bytes") -> Advance: ...


def no_progress(title: str, total: int, unit: Unit = "bytes") -> Advance:
    """Show nothing."""
    return lambda done: None


@contextmanager
def progress_display(stream: TextIO) -> Iterator[Start]:
    """Show progress on a stream; what `start` gives may be called from any thread."""
    if not stream.isatty():

        def plain(title: str, total: int, unit: Unit = "bytes") -> Advance:
            return PlainProgress(stream, title, total, unit)

        yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:

        def start(title: str, total: int, unit: Unit = "bytes") -> Advance:
            task = bar.add_task(title, total=total, said="")

            def advance(done: int) -> None:
                bar.advance(task, done)
                seen = bar.tasks[task]
                rate = f", {amount(seen.speed, unit)}/s" if seen.speed else ""
                whole = f"{amount(seen.completed, unit)} of {amount(total, unit)}"
                bar.update(task, said=whole + rate)

            return advance

        yield start


class PlainProgress:
    """A line every few seconds, for logs."""

    def __init__(
        self,
        stream: TextIO,
        title: str,
        total: int,
        unit: Unit = "bytes",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._title = title
        self._total = total
        self._unit: Unit = unit
        self._clock = clock
        self._done = 0
        self._started = self._told = clock()
        self._lock = threading.Lock()

    def __call__(self, done: int) -> None:
        with self._lock:
            self._done += done
            now = self._clock()
            if now - self._told < SECONDS_BETWEEN_LINES:
                return
            self._told = now
            rate = self._done / (now - self._started)
            left = duration((self._total - self._done) / rate) if rate else "unknown time"
            self._stream.write(
                f"{self._title}: {amount(self._done, self._unit)} of "
                f"{amount(self._total, self._unit)}, {amount(rate, self._unit)}/s, {left} left\n"
            )
            self._stream.flush()
