"""Making a finished output visible in one step."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from mergekit_cl.output.durable import sync

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def publish_directory(staged: Path, target: Path) -> None:
    """Put `staged` in the place of `target`: absent, an empty folder, or one to be replaced.

    One rename where nothing is there; an exchange where something is, so that at every instant
    either the old or the new output is complete.
    """
    if target.is_dir() and any(target.iterdir()):
        if exchange(staged, target):
            # Before the old output goes, or a power loss could bring back what is left of it.
            _sync_both(staged, target)
            shutil.rmtree(staged)
        else:
            _replace_in_two_steps(staged, target)
    else:
        staged.rename(target)
        _sync_both(staged, target)
    finish_interrupted(target)


def move_file(source: Path, target: Path) -> None:
    """Put one file in the place of another by one rename."""
    source.replace(target)
    _sync_both(source, target)


def publish_inside(
    staged: Path, target: Path, last: tuple[str, ...], replaced: tuple[str, ...] = ()
) -> None:
    """Move the content of `staged` into the existing folder `target`; again after a kill.

    For places that cannot be renamed. last: names moved at the end, in this order (the index and
    the manifest), so that a reader never sees them without what they speak of. replaced: names of
    an older output that are removed once the weights are there, or they would be what opens.
    """
    names = sorted(entry.name for entry in staged.iterdir())
    for name in (name for name in names if name not in last):
        _move(staged / name, target / name)
    sync(target)
    for name in replaced:
        (target / name).unlink(missing_ok=True)
    for name in (name for name in last if name in names):
        _move(staged / name, target / name)
        sync(target)
    sync(staged)


def _move(source: Path, there: Path) -> None:
    if there.is_dir() and not there.is_symlink():
        shutil.rmtree(there)
    source.replace(there)


def _sync_both(source: Path, target: Path) -> None:
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def finish_interrupted(target: Path) -> None:
    """Bring back the old output if a replacement in two renames stopped between them."""
    aside = _aside(target)
    if not aside.exists():
        return
    if target.exists():
        shutil.rmtree(aside)
    else:
        aside.rename(target)
    # Before what tells the next command to come here is removed.
    sync(target.parent)


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
    sync(target.parent)
    staged.rename(target)
    _sync_both(staged, target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")
