"""Bytes done, bytes per second, time left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from mergekit_cl.report.amounts import duration, size

SECONDS_BETWEEN_LINES = 5.0
Advance = Callable[[int], None]


@contextmanager
def progress_display(stream: TextIO) -> Iterator[Callable[[str, int], Advance]]:
    """Gives start(title, total) -> advance(done); advance may be called from any thread."""
    if not stream.isatty():
        yield lambda title, total: PlainProgress(stream, title, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:

        def start(title: str, total: int) -> Advance:
            task = bar.add_task(title, total=total)
            return lambda done: bar.advance(task, done)

        yield start


class PlainProgress:
    """A line every few seconds, for logs."""

    def __init__(
        self,
        stream: TextIO,
        title: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._title = title
        self._total = total
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
            print(
                f"{self._title}: {size(self._done)} of {size(self._total)}, "
                f"{size(rate)}/s, {left} left",
                file=self._stream,
                flush=True,
            )
