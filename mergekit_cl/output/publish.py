"""Making a finished output visible in one step."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sync_tree(root: Path) -> None:
    """Force every file and folder below `root`, and `root` itself, to the disk."""
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder) / name)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Force one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_directory(staged: Path, target: Path) -> None:
    """Put `staged` in the place of `target`: absent, an empty folder, or one to be replaced.

    One rename where nothing is there; an exchange where something is, so that at every instant
    either the old or the new output is complete.
    """
    if target.is_dir() and any(target.iterdir()):
        if exchange(staged, target):
            shutil.rmtree(staged)
        else:
            _replace_in_two_steps(staged, target)
    else:
        staged.rename(target)
    sync(target.parent)


def publish_inside(
    staged: Path, target: Path, last: tuple[str, ...], replaced: tuple[str, ...] = ()
) -> None:
    """Move the content of `staged` into the existing folder `target`.

    For places that cannot be renamed. last: names moved at the end, in this order (the index and
    the manifest), so that a reader never sees them without what they speak of. replaced: names of
    an older output that are removed once the weights are there, or they would be what opens.
    """
    names = sorted(entry.name for entry in staged.iterdir())
    for name in (name for name in names if name not in last):
        _move(staged / name, target / name)
    for name in replaced:
        (target / name).unlink(missing_ok=True)
    for name in (name for name in last if name in names):
        _move(staged / name, target / name)
    sync(target)


def _move(source: Path, there: Path) -> None:
    if there.is_dir() and not there.is_symlink():
        shutil.rmtree(there)
    source.replace(there)


def finish_interrupted(target: Path) -> None:
    """Bring back the old output if a replacement in two renames stopped between them."""
    aside = _aside(target)
    if aside.exists() and not target.exists():
        aside.rename(target)
    elif aside.exists():
        shutil.rmtree(aside)


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is None:
        return False
    done: int = renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    )
    return done == 0


def _replace_in_two_steps(staged: Path, target: Path) -> None:
    aside = _aside(target)
    target.rename(aside)
    staged.rename(target)
    shutil.rmtree(aside)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")
