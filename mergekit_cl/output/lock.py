"""One process at a time in a folder; a lock that its owner's death gives back."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

NAME = "lock"


def lock_folder(folder: Path) -> int | None:
    """Lock an existing folder; the open file that holds the lock, or None while another has it.

    Raises FileNotFoundError where the folder is gone: its owner has just finished.
    """
    path = folder / NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that ends removes the file: a lock on a removed file protects nothing.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
