"""Every change a process makes to files, counted as it makes them, to stop or fail before one.

Names change through calls that Python's audit hook tells of; bytes through those of `os` that are
wrapped here. The state before a step is all that was done after the step before it, so that
stopping before every step stops everywhere between two changes.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tests.disk import Recorder

NAMES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
BYTES = ("fsync", "pwrite", "posix_fallocate", "ftruncate")
ROOM = ("pwrite", "posix_fallocate", "mkdir", "open")  # what a full disk refuses
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Steps:
    """Counts steps; kills the process before number `kill_at`, has number `fail_at` fail.

    recorder: told of every step before it is done.
    """

    def __init__(self, kill_at: int | None, fail_at: int | None, recorder: Recorder | None) -> None:
        self.count = 0
        self.recorder = recorder
        self._kill_at = kill_at
        self._fail_at = fail_at
        self._busy = False

    def step(self, what: str, arguments: tuple[Any, ...]) -> None:
        """One more change is about to be made."""
        if self._busy or (self._fail_at is not None and what not in ROOM):
            return
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fail_at is not None and self.count >= self._fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.count += 1
        if self.recorder is not None:
            self._busy = True
            self.recorder.before(what, arguments)
            self._busy = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's own: opening for writing, and changes of names."""
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if opens and not str(arguments[0]).startswith("/dev/"):
            self.step("open", arguments)
        elif event in NAMES:
            self.step(event.removeprefix("os."), arguments)
        elif event == "ctypes.dlsym" and arguments[1] == "renameat2":
            self.step("exchange", ())

    def end(self) -> None:
        """Count no more, and keep what was recorded."""
        self._busy = True
        if self.recorder is not None:
            self.recorder.save()

    def wrapped(self, name: str) -> Callable[..., Any]:
        """A function of `os` that is counted."""
        real = getattr(os, name)

        def call(descriptor: int, *rest: Any) -> Any:
            self.step(name, (descriptor, *rest))
            if name != "fsync":
                return real(descriptor, *rest)
            # Killing loses nothing that was written: only a model of the disk needs to know.
            if self.recorder is not None:
                self.recorder.synced(descriptor)
            return None

        return call


def install(request: dict[str, Any]) -> Steps:
    """Count the steps of this process from now on."""
    where = request.get("record")
    recorder = None if where is None else Recorder(request["root"], where)
    steps = Steps(request.get("kill_at"), request.get("fail_at"), recorder)
    for name in BYTES:
        setattr(os, name, steps.wrapped(name))
    sys.addaudithook(steps.hook)
    return steps
