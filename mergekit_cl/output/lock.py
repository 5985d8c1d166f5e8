"""One process at a time in a folder or at a file; a lock that its owner's death gives back."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

NAME = "lock"


def lock_folder(folder: Path) -> int | None:
    """Lock an existing folder; the open file that holds the lock, or None while another has it.

    Raises FileNotFoundError where the folder is gone: its owner has just finished.
    """
    try:
        return _lock(folder / NAME, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def lock_file(path: Path) -> int:
    """Lock a file, made if need be, when its turn comes; the open file that holds the lock."""
    return _lock(path, fcntl.LOCK_EX)


def _lock(path: Path, how: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, how)
            # Its owner may have removed or replaced the file since it was opened: a lock on what no
            # name leads to protects nothing.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
