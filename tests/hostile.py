"""Opening a file that may be anything, under watch: its time, its memory, and what it touches."""

from __future__ import annotations

import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import mergekit_cl
from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.checkpoint.dtypes import READABLE
from mergekit_cl.errors import ClmergeError

SECONDS = 5.0
MEMORY = 256 * 2**20  # of address space, for files of a few KiB
CODE = tuple(
    {
        os.path.realpath(place) + os.sep
        for place in (
            sys.prefix,
            sys.base_prefix,
            *sysconfig.get_paths().values(),
            *(str(Path(package).parent) for package in mergekit_cl.__path__),
        )
    }
)
"""Where modules lie that are imported on the way, and sources that a traceback quotes."""
HARMFUL = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink")


class Violation(AssertionError):
    """Something a hostile file must never bring about."""


class Watch:
    """Listens to what this process opens, starts and connects to while a case runs."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)  # for good: hooks cannot be taken away

    @contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        """Raise Violation at the end for everything outside `folder`."""
        self.seen.clear()
        self.folder = os.path.realpath(folder) + os.sep
        try:
            yield
        finally:
            self.folder = None
        if self.seen:
            raise Violation(f"touched {self.seen[:3]}")

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in HARMFUL or event in CHANGING:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            writes = flags & (os.O_WRONLY | os.O_RDWR)
            known = path.startswith((self.folder, *CODE, "/proc/"))
            if writes or not known:
                self.seen.append(f"open {path:.200}")


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Violation instead of hanging."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Violation(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_of(extra: int) -> Iterator[None]:
    """Let allocations beyond `extra` bytes fail."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def examine(path: Path, folder: Path, watch: Watch) -> dict[str, Any] | None:
    """Open a checkpoint and read all of it: {name: tensor}, or None where it is refused.

    folder: all that may be touched. Raises Violation for any other end.
    """
    try:
        with (
            at_most(SECONDS),
            memory_of(MEMORY),
            watch.over(folder),
            open_checkpoint(path) as checkpoint,
        ):
            return _read_all(checkpoint, folder)
    except ClmergeError as error:
        _check_error(error)
        return None
    except Violation:
        raise
    except BaseException as error:
        raise Violation(f"{type(error).__name__}: {error!s:.300}") from error


def _read_all(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if checkpoint.nbytes > there:
        raise Violation(f"{checkpoint.nbytes} bytes of tensors in {there} bytes of files")
    found = {}
    for name, info in checkpoint.tensors.items():
        if info.dtype not in READABLE:
            continue
        tensor = checkpoint.read(name)
        if tensor.numel() != info.numel:
            raise Violation(f"{name} has {tensor.numel()} elements, not {info.numel}")
        found[name] = checkpoint.tensor(name)
    found.update({alias: found[name] for alias, name in checkpoint.aliases.items()})
    return found


def _check_error(error: ClmergeError) -> None:
    told = f"{error.message}{error.detail}{error.hint}"
    if len(told) > 2000 or "\n" in error.message:
        raise Violation(f"an error of {len(told)} characters: {told:.100}")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Violation):
            raise cause
        if isinstance(cause, MemoryError) or "alloc" in str(cause).lower():
            raise Violation(f"tried to allocate too much: {cause!s:.200}")
        cause = cause.__cause__ or cause.__context__
